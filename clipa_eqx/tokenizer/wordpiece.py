"""The tokenizer: captions to fixed-length rows of word-piece ids, and back."""

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

TOKENIZER_FILES = ("vocab.txt", "about.json")
"""All that ``Tokenizer.save`` writes."""

_LONGEST_WORD_BYTES = 100
_CACHED_WORDS = 1 << 16
_FORMAT = {"kind": "bert-wordpiece-uncased", "version": 1}


class Encoded(NamedTuple):
    """One caption: ``[CLS]``, its pieces, zeros. ``is_truncated`` says that some pieces did not fit."""

    ids: Int32[np.ndarray, " length"]
    is_truncated: bool


class Tokens(NamedTuple):
    """A batch of captions and how many of them lost pieces."""

    ids: Int32[np.ndarray, "batch length"]
    truncated: int


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """BERT WordPiece with the reference's normalization: ``[CLS]`` first, no ``[SEP]``, padded with zeros.

    ``classes`` holds one byte per piece, 1 noun, 2 adjective, 3 verb, 4 other, for the reduction "syntax".
    Picklable; imports no jax. Raises DataError for an unusable vocabulary (see ``vocabulary.check_vocab``).

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
        """The shipped uncased vocabulary of BERT with its part-of-speech classes: what official CLIPA weights use."""
        return cls(pieces=vocabulary.bert_pieces(), classes=vocabulary.bert_classes())

    @classmethod
    def from_file(cls, vocab: Path | str) -> "Tokenizer":
        """Another vocabulary. Pieces of BERT's take their class from it, the others (``unclassified``) class 4.

        Raises DataError naming the file if it is missing, damaged, or lacks a special piece.
        """
        pieces = vocabulary.read_vocab(Path(vocab))
        vocabulary.check_vocab(pieces, where=str(vocab))
        classes, unclassified = vocabulary.look_up_classes(pieces)
        return cls(pieces=pieces, classes=classes, unclassified=unclassified)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Reads what ``save`` wrote. Raises DataError for a missing, foreign or altered folder."""
        about = folder / TOKENIZER_FILES[1]
        try:
            found = json.loads(about.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"tokenizer: cannot read {about} ({error}); expected a folder written by save") from error
        if not isinstance(found, dict) or {key: found.get(key) for key in _FORMAT} != _FORMAT:
            raise DataError(
                f"tokenizer: {about} says {found}, expected {_FORMAT}; load it with the version that wrote it"
            )
        tokenizer = cls.from_file(folder / TOKENIZER_FILES[0])
        if tokenizer.vocab_sha256 != found.get("vocab_sha256"):
            raise DataError(f"tokenizer: {folder / 'vocab.txt'} was altered since it was saved; restore the file")
        return tokenizer

    def save(self, folder: Path) -> None:
        """Writes ``vocab.txt`` and ``about.json`` into ``folder``, which is created if needed.

        Classes are looked up again by ``load``; a table that was set by hand is not stored.
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
        """Rows of ``length`` ids, ``[CLS]`` included. Raises as ``encode``, and DataError for one bare string."""
        if isinstance(texts, str | bytes):
            raise DataError(f"tokenizer: got the single caption {texts[:40]!r}; pass a list, or call encode")
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
        """One caption. Raises ConfigError for ``length`` < 1 and for "random" or "block" without ``rng``."""
        _check_length(length)
        ids = np.zeros((length,), np.int32)
        is_truncated = self._fill(ids, text, reduction=reduction, rng=rng)
        return Encoded(ids, is_truncated)

    def words(self, text: str | bytes) -> list[list[int]]:
        """All piece ids, one list per word; a word that the vocabulary cannot spell is one ``[UNK]``."""
        return [list(self._word_ids(word)) for word in split_words(text)]

    def decode(self, ids: Iterable[int] | Int32[np.ndarray, " length"]) -> str:
        """Words of a row, joined by spaces, without ``[PAD]`` and ``[CLS]``. Raises DataError for a foreign id."""
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
        return len(self.pieces)

    @property
    def pad_id(self) -> int:
        return 0

    @functools.cached_property
    def unk_id(self) -> int:
        return self.pieces.index(vocabulary.UNKNOWN)

    @functools.cached_property
    def cls_id(self) -> int:
        return self.pieces.index(vocabulary.CLASS)

    @functools.cached_property
    def vocab_sha256(self) -> str:
        """Of the vocabulary file that ``save`` writes; for BERT's, also of the file that Google published."""
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
        """Writes a caption into a row of zeros; True if pieces were lost."""
        word_ids = self._word_ids
        words = [word_ids(word) for word in split_words(text)]
        kept = reduce_words(words, room=len(row) - 1, reduction=reduction, classes=self.classes, rng=rng)
        row[0] = self.cls_id
        row[1 : 1 + len(kept)] = kept
        return sum(map(len, words)) > len(kept)

    @functools.cached_property
    def _word_ids(self) -> Callable[[str], tuple[int, ...]]:
        """Normalized word -> piece ids, greedy from the left; a memory of the most recent words makes it cheap."""
        model = WordPiece(
            {piece: i for i, piece in enumerate(self.pieces)},
            unk_token=vocabulary.UNKNOWN,
            max_input_chars_per_word=_LONGEST_WORD_BYTES,
        )
        unknown = (self.unk_id,)

        @functools.lru_cache(maxsize=_CACHED_WORDS)
        def word_ids(word: str) -> tuple[int, ...]:
            # The reference counts bytes of UTF-8, the library characters, of which there are never more.
            if len(word.encode()) > _LONGEST_WORD_BYTES:
                return unknown
            return tuple(token.id for token in model.tokenize(word))

        return word_ids


def _check_length(length: int) -> None:
    if length < 1:
        raise ConfigError(f"text length is {length}, expected at least 1 token (the [CLS]); set a longer text")
