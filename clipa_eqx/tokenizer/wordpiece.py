"""The tokenizer: captions to rows of word-piece ids of fixed length, and back."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32
from tokenizers.models import WordPiece

from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.tokenizer import vocabulary
from clipa_eqx.tokenizer.normalize import split_words
from clipa_eqx.tokenizer.reduce import Reduction, reduce_words
from clipa_eqx.tokenizer.texts import check_text, check_texts

TOKENIZER_FILES = ("vocab.txt", "about.json")
"""Files that ``Tokenizer.save`` writes."""

_LONGEST_WORD_BYTES = 100
_CACHED_WORDS = 1 << 16
_FORMAT = {"kind": "bert-wordpiece-uncased", "version": 1}


class Encoded(NamedTuple):
    """Tokens of one caption: ``[CLS]``, its pieces, zeros; ``is_truncated`` is true if some pieces did not fit."""

    ids: Int32[np.ndarray, " length"]
    is_truncated: bool


class Tokens(NamedTuple):
    """Tokens of a batch of captions.

    Attributes:
        ids: a row per caption: ``[CLS]``, its pieces, zeros.
        truncated: number of captions that lost pieces.
    """

    ids: Int32[np.ndarray, "batch length"]
    truncated: int


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """BERT WordPiece with the reference's normalization: ``[CLS]`` first, no ``[SEP]``, padded with zeros.

    A tokenizer can be pickled and imports no jax.

    Attributes:
        pieces: word pieces by id.
        classes: one byte per piece, for the reduction "syntax": 1 noun, 2 adjective, 3 verb, 4 other.
        unclassified: number of pieces whose class is unknown; they have class 4.

    Raises:
        DataError: an unusable vocabulary (see ``vocabulary.check_vocab``), or a wrong number of classes.

    Examples:
        >>> tokenizer = Tokenizer.bert()
        >>> tokenizer(["a photo of a dog"], length=8).ids
        array([[ 101, 1037, 6302, 1997, 1037, 3899,    0,    0]], dtype=int32)
    """

    pieces: tuple[str, ...]
    classes: bytes
    unclassified: int = 0

    def __post_init__(self) -> None:
        vocabulary.check_vocab(self.pieces, where="tokenizer")
        if len(self.classes) != len(self.pieces):
            raise DataError(f"tokenizer: {len(self.classes)} classes for {len(self.pieces)} pieces; give one per piece")

    @classmethod
    def bert(cls) -> "Tokenizer":
        """Tokenizer of BERT's uncased vocabulary with its part-of-speech classes; official CLIPA weights need it."""
        return cls(pieces=vocabulary.bert_pieces(), classes=vocabulary.bert_classes())

    @classmethod
    def from_file(cls, vocab: Path | str) -> "Tokenizer":
        """Read another vocabulary file. Pieces that BERT's vocabulary has get their class from it, the others class 4.

        A warning counts the pieces of a cased vocabulary that can never occur.

        Raises:
            DataError: the file is missing, damaged, or lacks a special piece; the message names the file.
        """
        tokenizer = cls._read(Path(vocab))
        vocabulary.warn_of_case(tokenizer.pieces, where=str(vocab))
        return tokenizer

    @classmethod
    def _read(cls, vocab: Path) -> "Tokenizer":
        pieces = vocabulary.read_vocab(vocab)
        vocabulary.check_vocab(pieces, where=str(vocab))
        classes, unclassified = vocabulary.look_up_classes(pieces)
        return cls(pieces=pieces, classes=classes, unclassified=unclassified)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read a folder that ``save`` wrote.

        Raises:
            DataError: the folder is missing, of another kind, or was altered.
        """
        about = folder / TOKENIZER_FILES[1]
        try:
            found = json.loads(about.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"tokenizer: cannot read {about} ({error}); expected a folder written by save") from error
        if not isinstance(found, dict) or {key: found.get(key) for key in _FORMAT} != _FORMAT:
            raise DataError(
                f"tokenizer: {about} says {found}, expected {_FORMAT}; load it with the version that wrote it"
            )
        tokenizer = cls._read(folder / TOKENIZER_FILES[0])
        if tokenizer.vocab_sha256 != found.get("vocab_sha256"):
            raise DataError(f"tokenizer: {folder / 'vocab.txt'} was altered since it was saved; restore the file")
        return tokenizer

    def save(self, folder: Path) -> None:
        """Write ``vocab.txt`` and ``about.json`` into ``folder``, which is created if needed.

        ``load`` looks the classes up again; classes that were set by hand are not stored.
        """
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary.write_vocab(self.pieces, folder / TOKENIZER_FILES[0])
        about = _FORMAT | {"vocab_sha256": self.vocab_sha256}
        (folder / TOKENIZER_FILES[1]).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def __call__(
        self,
        texts: Sequence[str | bytes],
        *,
        length: int,
        reduction: Reduction = "truncate",
        rng: np.random.Generator | None = None,
    ) -> Tokens:
        """Tokenize captions to rows of ``length`` ids, ``[CLS]`` included.

        Args:
            texts: captions; bytes are decoded as UTF-8.
            length: tokens per row.
            reduction: way to shorten a caption of too many pieces. "truncate" keeps the first pieces, "syntax" the
                words of the most important classes, "random" pieces at random, "block" a random run of neighboring
                pieces; all keep the order.
            rng: random generator, for "random" and "block"; captions that fit do not use it.

        Raises:
            ConfigError: ``length`` below 1, or "random" or "block" without ``rng``.
            DataError: one string instead of a sequence of captions, or a caption that is no text (None, NaN).
        """
        check_texts(texts, where="tokenizer")
        _check_length(length)
        ids = np.zeros((len(texts), length), np.int32)
        truncated = 0
        for row, text in zip(ids, texts, strict=True):
            truncated += self._fill(row, text, reduction=reduction, rng=rng)
        return Tokens(ids, truncated)

    def encode(
        self,
        text: str | bytes,
        *,
        length: int,
        reduction: Reduction = "truncate",
        rng: np.random.Generator | None = None,
    ) -> Encoded:
        """Tokenize one caption to ``length`` ids; the arguments are those of a call.

        Raises:
            ConfigError: ``length`` below 1, or "random" or "block" without ``rng``.
            DataError: the caption is no text.
        """
        check_text(text, where="tokenizer.encode")
        _check_length(length)
        ids = np.zeros((length,), np.int32)
        is_truncated = self._fill(ids, text, reduction=reduction, rng=rng)
        return Encoded(ids, is_truncated)

    def words(self, text: str | bytes) -> list[list[int]]:
        """Return the piece ids of each word; a word that the vocabulary cannot spell is one ``[UNK]``.

        Raises:
            DataError: the caption is no text.
        """
        check_text(text, where="tokenizer.words")
        return [list(self._word_ids(word)) for word in split_words(text)]

    def decode(self, ids: Iterable[int] | Int32[np.ndarray, " length"]) -> str:
        """Join the words of a row with spaces, without ``[PAD]`` and ``[CLS]``.

        Raises:
            DataError: an id outside the vocabulary, or several rows.
        """
        if isinstance(ids, np.ndarray) and ids.ndim != 1:
            raise DataError(
                f"tokenizer: decode takes one row of ids, got an array of shape {ids.shape}; decode each row"
            )
        text = ""
        for i in map(int, ids):
            if not 0 <= i < self.vocab_size:
                raise DataError(
                    f"token id {i} is outside the vocabulary of {self.vocab_size} pieces; use its tokenizer"
                )
            if i in (self.pad_id, self.cls_id):
                continue
            piece = self.pieces[i]
            text += piece[2:] if piece.startswith("##") and text else f" {piece}"
        return text.strip()

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return len(self.pieces)

    @property
    def pad_id(self) -> int:
        """Id of ``[PAD]``, always 0."""
        return 0

    @functools.cached_property
    def unk_id(self) -> int:
        """Id of ``[UNK]``."""
        return self.pieces.index(vocabulary.UNKNOWN)

    @functools.cached_property
    def cls_id(self) -> int:
        """Id of ``[CLS]``."""
        return self.pieces.index(vocabulary.CLASS)

    @functools.cached_property
    def vocab_sha256(self) -> str:
        """SHA-256 of the vocabulary file that ``save`` writes; for BERT's it is that of the file Google published."""
        return hashlib.sha256(vocabulary.serialize(self.pieces)).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        # The library model and the cache are rebuilt in the process that receives the tokenizer.
        return {"pieces": self.pieces, "classes": self.classes, "unclassified": self.unclassified}

    def _fill(
        self,
        row: Int32[np.ndarray, " length"],
        text: str | bytes,
        *,
        reduction: Reduction,
        rng: np.random.Generator | None,
    ) -> bool:
        """Write a caption into a row of zeros; True if pieces were lost."""
        word_ids = self._word_ids
        words = [word_ids(word) for word in split_words(text)]
        kept = reduce_words(words, room=len(row) - 1, reduction=reduction, classes=self.classes, rng=rng)
        row[0] = self.cls_id
        row[1 : 1 + len(kept)] = kept
        return sum(map(len, words)) > len(kept)

    @functools.cached_property
    def _word_ids(self) -> Callable[[str], tuple[int, ...]]:
        """Function from a normalized word to piece ids, greedy from the left; it caches the most recent words."""
        model = WordPiece(
            {piece: i for i, piece in enumerate(self.pieces)},
            unk_token=vocabulary.UNKNOWN,
            max_input_chars_per_word=_LONGEST_WORD_BYTES,
        )
        unknown = (self.unk_id,)

        @functools.lru_cache(maxsize=_CACHED_WORDS)
        def word_ids(word: str) -> tuple[int, ...]:
            # The reference counts bytes of UTF-8. The library counts characters, of which there are never more.
            if len(word.encode()) > _LONGEST_WORD_BYTES:
                return unknown
            return tuple(token.id for token in model.tokenize(word))

        return word_ids


def _check_length(length: int) -> None:
    if length < 1:
        raise ConfigError(f"text length is {length}, expected at least 1 token (the [CLS]); set a longer text")
