"""Whether two models tokenise alike, and if not, which habit differs: each is tried on fixed texts."""

import html
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Int

from clipa_eqx.errors import ConversionError
from clipa_eqx.tokenizer import Tokenizer
from clipa_eqx.tokenizer.vocabulary import CLASS, PAD, UNKNOWN, read_vocab

VOCABULARY = "other vocabulary"
SEP_KEPT = "SEP kept"
SEP_PLACE = "a place kept for SEP"
NORMALISATION = "tokeniser normalisation"
CLEANING = "text cleaning"

FIXED_TEXTS: tuple[str, ...] = (
    "a photo of a dog",
    "A close-up photo of a T-shirt, with café crème!",
    "",
    "an extremely long caption of more pieces than any model takes: " + "one two three four five six seven eight " * 12,
    "Straße ﬁne ½ cup … Acme™ １２３ Ⅷ",  # decomposed or folded differently by different libraries
    "你好 world",
)

Ids = Int[np.ndarray, "texts length"]
Rules = Literal["reference", "bert"]
"""How texts are normalised and split: as tensorflow-text does, and our tokenizer, or as Hugging Face's BERT does."""
Sep = Literal["none", "kept", "stripped"]
Vocabularies = tuple[tuple[str, ...] | None, tuple[str, ...] | None]


@dataclass(frozen=True, kw_only=True)
class TextHabits:
    """How texts become ids, beyond the vocabulary.

    Attributes:
        normaliser: whose rules.
        sep: none at all; kept as a token; or replaced by padding after it has taken its place.
        cleans: HTML entities and white space are cleaned up first.
    """

    normaliser: Rules = "reference"
    sep: Sep = "none"
    cleans: bool = False


@dataclass(frozen=True, kw_only=True)
class HabitTokenizer:
    """A vocabulary, a length and habits; slow, for comparing."""

    pieces: tuple[str, ...]
    length: int
    habits: TextHabits

    def __call__(self, texts: Sequence[str]) -> Ids:
        """Rows of ids. Raises ``DataError`` for an unusable vocabulary."""
        split = self._reference() if self.habits.normaliser == "reference" else self._bert()
        ids = np.zeros((len(texts), self.length), np.int64)
        cls, sep = self.pieces.index(CLASS), self.pieces.index("[SEP]") if "[SEP]" in self.pieces else 0
        for row, text in zip(ids, texts, strict=True):
            found = split(clean(text) if self.habits.cleans else text)
            room = self.length - (1 if self.habits.sep == "none" else 2)
            kept = [cls, *found[: max(room, 0)]]
            if self.habits.sep == "kept":
                kept.append(sep)
            row[: len(kept)] = kept[: self.length]
        return ids

    def _reference(self) -> Callable[[str], list[int]]:
        tokenizer = Tokenizer(pieces=self.pieces, classes=bytes(len(self.pieces)))
        return lambda text: [i for word in tokenizer.words(text) for i in word]

    def _bert(self) -> Callable[[str], list[int]]:
        tokenizer = bert_tokenizer(self.pieces)
        return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


class TextReport(NamedTuple):
    """How many of the fixed texts have the same ids; per cause an example; the texts that nothing explains."""

    texts: int
    equal: int
    causes: tuple[tuple[str, str], ...]
    unexplained: tuple[str, ...]


def bert_tokenizer(pieces: Sequence[str]) -> Any:
    """Hugging Face's ``BertTokenizer`` of a vocabulary, without its special tokens around a text."""
    vocab = {piece: i for i, piece in enumerate(pieces)}
    made: Any = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token=UNKNOWN))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    special = [token for token in (PAD, UNKNOWN, CLASS, "[SEP]", "[MASK]") if token in vocab]
    made.add_special_tokens(special)
    return made


def clean(text: str) -> str:
    """open_clip's cleaning, but for the repair of broken encodings."""
    return " ".join(html.unescape(html.unescape(text)).split())


def folder_pieces(folder: Path) -> tuple[str, ...] | None:
    """The vocabulary that open_clip takes from a folder, or None: ``tokenizer.json`` goes before ``vocab.txt``.

    Raises:
        ConversionError: there is one, and it cannot be read.
    """
    if (folder / "tokenizer.json").is_file():
        return json_pieces(folder / "tokenizer.json")
    return read_vocab(folder / "vocab.txt") if (folder / "vocab.txt").is_file() else None


def json_pieces(file: Path) -> tuple[str, ...]:
    """The vocabulary of a ``tokenizer.json``. Raises ``ConversionError`` if it cannot be read or has other ids."""
    vocab: dict[str, int] = load_tokenizer_json(file).get_vocab(with_added_tokens=True)
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ConversionError(f"{file}: the ids of its vocabulary are not 0 to {len(vocab) - 1}")
    return tuple(sorted(vocab, key=lambda piece: vocab[piece]))


def load_tokenizer_json(file: Path) -> Any:
    """The library's tokenizer of a ``tokenizer.json``. Raises ``ConversionError`` if it cannot be read."""
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ConversionError(f"{file} is no tokenizer that the library reads ({error})") from error


def json_tokenizer(file: Path, *, length: int, strips_sep: bool) -> Callable[[list[str]], Ids]:
    """What open_clip does with a folder's ``tokenizer.json``."""
    made = load_tokenizer_json(file)
    sep: int | None = made.token_to_id("[SEP]")

    def tokenise(texts: list[str]) -> Ids:
        made.enable_truncation(length)
        made.enable_padding(length=length, pad_id=0)
        ids = np.array([encoded.ids for encoded in made.encode_batch([clean(text) for text in texts])], np.int64)
        return np.where(ids == sep, 0, ids) if strips_sep and sep is not None else ids

    return tokenise


def compare_texts(
    a: Callable[[list[str]], Ids],
    b: Callable[[list[str]], Ids],
    *,
    pieces: Vocabularies,
) -> TextReport:
    """Tokenise the fixed texts both ways, find the habits that give A's ids, and what B does else.

    Args:
        pieces: the vocabularies of both; without them, nothing is explained.
    """
    texts = list(FIXED_TEXTS)
    ours, theirs = a(texts), b(texts)
    if ours.shape != theirs.shape:
        what = f"A has {ours.shape[1]} tokens a text, B {theirs.shape[1]}"
        return TextReport(len(texts), 0, (("text length", what),), ())
    differ = [i for i in range(len(texts)) if (ours[i] != theirs[i]).any()]
    causes: dict[str, str] = {}
    left = list(differ)
    for chosen in _subsets(texts, ours, pieces) if differ else ():
        if not left:
            break
        made = chosen.tokenise([texts[i] for i in left])
        hits = [i for i, row in zip(left, made, strict=True) if (row == theirs[i]).all()]
        for i in hits:
            for cause in chosen.causes:
                causes.setdefault(cause, f"as in {texts[i][:40]!r}")
        left = [i for i in left if i not in hits]
    unexplained = tuple(texts[i] for i in left)
    return TextReport(len(texts), len(texts) - len(differ), tuple(causes.items()), unexplained)


class _Subset(NamedTuple):
    causes: tuple[str, ...]
    tokenise: HabitTokenizer


def _subsets(texts: list[str], ids: Ids, pieces: Vocabularies) -> list[_Subset]:
    """Other habits and vocabularies than those that give A's ids, the fewest changes first; none if nothing does."""
    a, b = pieces
    if a is None or b is None:
        return []
    rules: tuple[Rules, ...] = ("reference", "bert")
    seps: tuple[Sep, ...] = ("none", "stripped", "kept")
    known = [
        HabitTokenizer(pieces=a, length=ids.shape[1], habits=TextHabits(normaliser=rule, sep=sep, cleans=cleans))
        for rule, sep, cleans in itertools.product(rules, seps, (False, True))
    ]
    own = next((one for one in known if np.array_equal(one(texts), ids)), None)
    if own is None:
        return []
    found: list[_Subset] = []
    for other in known:
        causes: list[str] = []
        if other.habits.normaliser != own.habits.normaliser:
            causes.append(NORMALISATION)
        if other.habits.cleans != own.habits.cleans:
            causes.append(CLEANING)
        if other.habits.sep != own.habits.sep:
            causes.append(SEP_KEPT if "kept" in (other.habits.sep, own.habits.sep) else SEP_PLACE)
        found.append(_Subset(tuple(causes), other))
        if a != b:
            found.append(_Subset((VOCABULARY, *causes), replace(other, pieces=b)))
    return sorted(found, key=lambda one: len(one.causes))
