"""A slow tokenizer for comparisons, with every combination of the settings in which programs differ."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from clipa_eqx.tokenizer.vocabulary import CLASS
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from conversion.open_clip.tokenizer import SEP, Ids, bert_tokenizer, clean
from conversion.weights.formats import TextRules

Sep = Literal["none", "kept", "stripped"]


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Settings of a tokenizer other than its vocabulary.

    Attributes:
        normalizer: the rules that normalize and split texts.
        sep: no [SEP] at all; [SEP] kept as a token; or replaced by padding, which leaves its place unused.
        cleans: HTML entities and white space are cleaned first.
    """

    normalizer: TextRules = "reference"
    sep: Sep = "none"
    cleans: bool = False


@dataclass(frozen=True, kw_only=True)
class ReplayTokenizer:
    """A tokenizer of a vocabulary, a length in tokens, and settings."""

    pieces: tuple[str, ...]
    length: int
    settings: TextSettings

    def __call__(self, texts: Sequence[str]) -> Ids:
        """Ids (texts, length). Raises ``DataError`` for an unusable vocabulary."""
        split = self._reference() if self.settings.normalizer == "reference" else self._bert()
        ids = np.zeros((len(texts), self.length), np.int64)
        cls, sep = self.pieces.index(CLASS), self.pieces.index(SEP) if SEP in self.pieces else 0
        for row, text in zip(ids, texts, strict=True):
            found = split(clean(text) if self.settings.cleans else text)
            room = self.length - (1 if self.settings.sep == "none" else 2)
            kept = [cls, *found[: max(room, 0)]]
            if self.settings.sep == "kept":
                kept.append(sep)
            row[: len(kept)] = kept[: self.length]
        return ids

    def _reference(self) -> Callable[[str], list[int]]:
        tokenizer = Tokenizer(pieces=self.pieces, classes=bytes(len(self.pieces)))
        return lambda text: [i for word in tokenizer.words(text) for i in word]

    def _bert(self) -> Callable[[str], list[int]]:
        tokenizer = bert_tokenizer(self.pieces)
        return lambda text: tokenizer.encode(text, add_special_tokens=False).ids
