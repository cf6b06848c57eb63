"""The flags that a wrong flag may have meant: by spelling, by words, and by the initials of words."""

import difflib
import itertools
import re
from collections.abc import Iterator, Sequence

_LEAST_LIKENESS, _MOST_SUGGESTIONS = 0.6, 3


def similar(flag: str, known: Sequence[str]) -> list[str]:
    """The known flags most like a wrong one, best first: by spelling, by words, and by the initials of words.

    >>> similar("--optim.peak-learning-rate", ["--optim.peak-lr", "--optim.lr-factors", "--seed"])
    ['--optim.peak-lr']
    """
    likeness = {one: _likeness(flag, one) for one in known}
    best = max(likeness.values(), default=0.0)
    if best < _LEAST_LIKENESS:
        return []
    ranked = sorted((one for one in known if likeness[one] > best - 0.05), key=lambda one: (-likeness[one], len(one)))
    return ranked[:_MOST_SUGGESTIONS]


def _likeness(wrong: str, known: str) -> float:
    name = known.removeprefix("--")
    last = name.rpartition(".")[2]
    words, found = _words(name), 0.0
    for variant in _with_initials(_words(wrong)):
        joined = "-".join(variant)
        found = max(
            found,
            _ratio(joined, "-".join(words)),
            0.98 * _ratio(joined, last),
            0.95 * _overlap(variant, words),
            0.93 * _overlap(variant, _words(last)),
        )
    return found


def _overlap(words: list[str], others: list[str]) -> float:
    """The share of words that are in both lists, give or take a letter: 1 if all are."""
    matched = sum(bool(difflib.get_close_matches(word, others, n=1, cutoff=0.8)) for word in words)
    return 2 * matched / (len(words) + len(others))


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _words(flag: str) -> list[str]:
    return [word for word in re.split(r"[.\-_]+", flag.lower()) if word]


def _with_initials(words: list[str]) -> Iterator[list[str]]:
    """The words, and the words with each run of two or three of them as its initials."""
    yield words
    for start, end in itertools.combinations(range(len(words) + 1), 2):
        if 2 <= end - start <= 3:
            yield [*words[:start], "".join(word[0] for word in words[start:end]), *words[end:]]
