"""Whether two models tokenize alike, and if not, which habit differs: each is tried on fixed texts."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from clipa_eqx.tokenizer import Tokenizer
from clipa_eqx.tokenizer.vocabulary import CLASS
from conversion.open_clip.tokenizer import Ids, bert_tokenizer, clean
from conversion.weights.formats import TextRules

VOCABULARY = "other vocabulary"
SEP_KEPT = "SEP kept"
SEP_PLACE = "a place kept for SEP"
NORMALIZATION = "tokenizer normalization"
CLEANING = "text cleaning"

FIXED_TEXTS: tuple[str, ...] = (
    "a photo of a dog",
    "A close-up photo of a T-shirt, with café crème!",
    "",
    "an extremely long caption of more pieces than any model takes: " + "one two three four five six seven eight " * 12,
    "Straße ﬁne ½ cup … Acme™ １２３ Ⅷ",  # decomposed or folded differently by different libraries
    "你好 world",
)

Sep = Literal["none", "kept", "stripped"]
Vocabularies = tuple[tuple[str, ...] | None, tuple[str, ...] | None]


@dataclass(frozen=True, kw_only=True)
class TextHabits:
    """How texts become ids, beyond the vocabulary.

    Attributes:
        normalizer: whose rules.
        sep: none at all; kept as a token; or replaced by padding after it has taken its place.
        cleans: HTML entities and white space are cleaned up first.
    """

    normalizer: TextRules = "reference"
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
        split = self._reference() if self.habits.normalizer == "reference" else self._bert()
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


def compare_texts(
    a: Callable[[list[str]], Ids],
    b: Callable[[list[str]], Ids],
    *,
    pieces: Vocabularies,
) -> TextReport:
    """Tokenize the fixed texts both ways, find the habits that give A's ids, and what B does else.

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
        made = chosen.tokenize([texts[i] for i in left])
        hits = [i for i, row in zip(left, made, strict=True) if (row == theirs[i]).all()]
        for i in hits:
            for cause in chosen.causes:
                causes.setdefault(cause, f"as in {texts[i][:40]!r}")
        left = [i for i in left if i not in hits]
    unexplained = tuple(texts[i] for i in left)
    return TextReport(len(texts), len(texts) - len(differ), tuple(causes.items()), unexplained)


class _Subset(NamedTuple):
    causes: tuple[str, ...]
    tokenize: HabitTokenizer


def _subsets(texts: list[str], ids: Ids, pieces: Vocabularies) -> list[_Subset]:
    """Other habits and vocabularies than those that give A's ids, the fewest changes first; none if nothing does."""
    a, b = pieces
    if a is None or b is None:
        return []
    rules: tuple[TextRules, ...] = ("reference", "bert")
    seps: tuple[Sep, ...] = ("none", "stripped", "kept")
    known = [
        HabitTokenizer(pieces=a, length=ids.shape[1], habits=TextHabits(normalizer=rule, sep=sep, cleans=cleans))
        for rule, sep, cleans in itertools.product(rules, seps, (False, True))
    ]
    own = next((one for one in known if np.array_equal(one(texts), ids)), None)
    if own is None:
        return []
    found: list[_Subset] = []
    for other in known:
        causes: list[str] = []
        if other.habits.normalizer != own.habits.normalizer:
            causes.append(NORMALIZATION)
        if other.habits.cleans != own.habits.cleans:
            causes.append(CLEANING)
        if other.habits.sep != own.habits.sep:
            causes.append(SEP_KEPT if "kept" in (other.habits.sep, own.habits.sep) else SEP_PLACE)
        found.append(_Subset(tuple(causes), other))
        if a != b:
            found.append(_Subset((VOCABULARY, *causes), replace(other, pieces=b)))
    return sorted(found, key=lambda one: len(one.causes))
