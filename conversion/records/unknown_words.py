"""The share of word pieces that the packaged vocabulary does not have, for the closing lines of a conversion."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

from clipa_eqx.tokenizer.unknown import CAPTION_ADVICE, NAME_ADVICE, PACKAGED, unknown_warning
from clipa_eqx.tokenizer.wordpiece import Tokenizer

_FIRST, _EVERY = 64, 16  # records of a part that are sampled: the first ones, and then one of so many
_MOST_CAPTIONS, _MOST_CHARACTERS = 5, 1000  # of a record, and of a caption
_CAPTIONS, _NAMES = "captions", "class names"


@dataclass(frozen=True, kw_only=True)
class PieceCounts:
    """Numbers of texts, of their word pieces, and of those pieces that are [UNK]."""

    texts: int = 0
    pieces: int = 0
    unknown: int = 0

    def __add__(self, other: "PieceCounts") -> "PieceCounts":
        return replace(
            self,
            texts=self.texts + other.texts,
            pieces=self.pieces + other.pieces,
            unknown=self.unknown + other.unknown,
        )


def is_sampled(number: int) -> bool:
    """Check whether the captions of a record are counted; ``number`` is 1 for the first one of a part."""
    return number <= _FIRST or number % _EVERY == 0


def count_pieces(captions: Iterable[str]) -> PieceCounts:
    """Count the pieces of the first captions of a record, and of the beginning of each."""
    return _count(text[:_MOST_CHARACTERS] for _, text in zip(range(_MOST_CAPTIONS), captions, strict=False))


def unknown_entry(captions: PieceCounts, class_names: Iterable[str]) -> dict[str, object]:
    """The entry for the manifest: that of the sampled captions or, without captions, that of the class names."""
    of, counts = (_CAPTIONS, captions) if captions.texts else (_NAMES, _count(class_names))
    if not counts.texts:
        return {}
    entry = {"of": of, "texts": counts.texts, "pieces": counts.pieces, "unknown": counts.unknown}
    return {"unknown_pieces": entry}


def unknown_lines(entry: Mapping[str, object]) -> Iterator[str]:
    """The entry as lines for a person; the second one is advice if many pieces are unknown."""
    of, texts = cast(str, entry["of"]), cast(int, entry["texts"])
    pieces, unknown = cast(int, entry["pieces"]), cast(int, entry["unknown"])
    noun = of if texts != 1 else of.removesuffix("s")
    share = 100 * unknown / max(1, pieces)
    shown = "under 0.1" if 0 < share < 0.1 else f"{share:.1f}"
    yield f"{shown} % of the tokens of {texts:,} {noun} are unknown ([UNK]) to the packaged vocabulary"
    advice = CAPTION_ADVICE if of == _CAPTIONS else NAME_ADVICE
    warning = unknown_warning(of, unknown=unknown, pieces=pieces, vocabulary=PACKAGED, advice=advice)
    if warning is not None:
        yield warning


def _count(texts: Iterable[str]) -> PieceCounts:
    tokenizer = _packaged()
    found = pieces = unknown = 0
    for text in texts:
        found += 1
        for word in tokenizer.words(text):
            pieces += len(word)
            unknown += word.count(tokenizer.unk_id)
    return PieceCounts(texts=found, pieces=pieces, unknown=unknown)


@functools.cache
def _packaged() -> Tokenizer:
    return Tokenizer.bert()
