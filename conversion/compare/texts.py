"""Search for the text setting in which two models differ: each known one is tried on the fixed texts."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from conversion.compare.inputs import FIXED_TEXTS
from conversion.compare.report import Cause
from conversion.compare.text_settings import ReplayTokenizer, Sep, TextSettings
from conversion.open_clip.tokenizer import Ids
from conversion.weights.formats import TextRules

VOCABULARY = "other vocabulary"
SEP_KEPT = "SEP kept"
SEP_PLACE = "a place kept for SEP"
NORMALIZATION = "tokenizer normalization"
CLEANING = "text cleaning"

Vocabularies = tuple[tuple[str, ...] | None, tuple[str, ...] | None]


class TextReport(NamedTuple):
    """Result of ``compare_texts``.

    Attributes:
        texts: number of texts.
        equal: how many have the same ids.
        causes: the settings that explain the others, each with a text as an example.
        unexplained: the texts that no known setting explains.
    """

    texts: int
    equal: int
    causes: tuple[Cause, ...]
    unexplained: tuple[str, ...]


def compare_texts(
    a: Callable[[list[str]], Ids],
    b: Callable[[list[str]], Ids],
    *,
    pieces: Vocabularies,
) -> TextReport:
    """Tokenize the fixed texts in both ways; find the settings that give A's ids, and the changes that give B's.

    Args:
        a: tokenizes as A does.
        b: tokenizes as B does.
        pieces: the vocabularies of both; without them, nothing is explained.
    """
    texts = list(FIXED_TEXTS)
    ours, theirs = a(texts), b(texts)
    if ours.shape != theirs.shape:
        what = f"A has {ours.shape[1]} tokens per text, B {theirs.shape[1]}"
        return TextReport(len(texts), 0, (("text length", what),), ())
    differ = [i for i in range(len(texts)) if (ours[i] != theirs[i]).any()]
    causes: dict[str, str] = {}
    left = list(differ)
    for hypothesis in _hypotheses(texts, ours, pieces) if differ else ():
        if not left:
            break
        made = hypothesis.tokenize([texts[i] for i in left])
        hits = [i for i, row in zip(left, made, strict=True) if (row == theirs[i]).all()]
        for i in hits:
            for cause in hypothesis.causes:
                causes.setdefault(cause, f"as in {texts[i][:40]!r}")
        left = [i for i in left if i not in hits]
    unexplained = tuple(texts[i] for i in left)
    return TextReport(len(texts), len(texts) - len(differ), tuple(causes.items()), unexplained)


class _Hypothesis(NamedTuple):
    causes: tuple[str, ...]
    tokenize: ReplayTokenizer


def _hypotheses(texts: list[str], ids: Ids, pieces: Vocabularies) -> list[_Hypothesis]:
    """Changes of the settings and vocabulary that give A's ids, the fewest first; none if no settings give them."""
    a, b = pieces
    if a is None or b is None:
        return []
    rules: tuple[TextRules, ...] = ("reference", "bert")
    seps: tuple[Sep, ...] = ("none", "stripped", "kept")
    known = [
        ReplayTokenizer(pieces=a, length=ids.shape[1], settings=TextSettings(normalizer=rule, sep=sep, cleans=cleans))
        for rule, sep, cleans in itertools.product(rules, seps, (False, True))
    ]
    own = next((one for one in known if np.array_equal(one(texts), ids)), None)
    if own is None:
        return []
    found: list[_Hypothesis] = []
    for other in known:
        causes = _changed(own.settings, other.settings)
        found.append(_Hypothesis(causes, other))
        if a != b:
            found.append(_Hypothesis((VOCABULARY, *causes), replace(other, pieces=b)))
    return sorted(found, key=lambda one: len(one.causes))


def _changed(own: TextSettings, other: TextSettings) -> tuple[str, ...]:
    causes: list[str] = []
    if other.normalizer != own.normalizer:
        causes.append(NORMALIZATION)
    if other.cleans != own.cleans:
        causes.append(CLEANING)
    if other.sep != own.sep:
        causes.append(SEP_KEPT if "kept" in (other.sep, own.sep) else SEP_PLACE)
    return tuple(causes)
