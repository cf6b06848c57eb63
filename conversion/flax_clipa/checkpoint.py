"""An open checkpoint of the reference, from either of its trainers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from conversion.flax_clipa.shapes import FlaxLayout
from conversion.weights.moments import Moments
from conversion.weights.tensors import TensorFile


class Checkpoint(NamedTuple):
    """An open checkpoint.

    Attributes:
        format: what provenance calls it.
        params: the parameters, without any prefix.
        moments: the optimizer state, if there is one and it is wanted.
        layout: how the same arrays are spelled.
        about: JSON of the layout, for provenance.
        notes: what else a user should know of it.
    """

    format: str
    params: TensorFile
    moments: Moments | None
    layout: FlaxLayout
    about: Mapping[str, Any]
    notes: tuple[str, ...] = ()
