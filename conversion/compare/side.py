"""One of the two models of a comparison, whatever its format."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from clipa_eqx.models.clip import CLIPConfig
from conversion.compare.replay import Float64Array
from conversion.compare.report import SideSummary
from conversion.open_clip.pixels import ImageSettings
from conversion.weights.tower_options import TowerOptions

Tower = Literal["image", "text"]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two models.

    Attributes:
        name: the argument of the command line.
        kind: model folder, Flax npz or open_clip.
        config: sizes; ``image`` and ``text`` override its numerics.
        image: how the image tower computes.
        text: how the text tower computes.
        read: a leaf in float64 by path, blocks by their layer's path; None if the file lacks it.
        log_temperature: as stored.
        tokenize: texts to ids (texts, length); None if this side does not record it.
        pieces: the vocabulary of ``tokenize``.
        prepare: a decoded image (in_height, in_width, 3) to pixels (height, width, 3); None if not recorded.
        image_settings: the same as settings, to search for a cause.
        notes: remarks for the report.
    """

    name: str
    kind: str
    config: CLIPConfig
    image: TowerOptions
    text: TowerOptions
    read: Callable[[str], Float64Array | None]
    log_temperature: float
    tokenize: Callable[[list[str]], np.ndarray] | None = None
    pieces: tuple[str, ...] | None = None
    prepare: Callable[[np.ndarray], np.ndarray] | None = None
    image_settings: ImageSettings | None = None
    notes: tuple[str, ...] = ()

    def options(self, tower: Tower) -> TowerOptions:
        """Settings of a tower's computation."""
        return self.image if tower == "image" else self.text

    def summary(self) -> SideSummary:
        """The part of the report that describes this side."""
        return SideSummary(name=self.name, kind=self.kind, notes=self.notes)
