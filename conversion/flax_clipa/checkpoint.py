"""An open checkpoint of the reference, of either of its trainers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from conversion.flax_clipa.shapes import FlaxLayout
from conversion.weights.formats import Format
from conversion.weights.moments import Moments
from conversion.weights.tensors import TensorFile


class Checkpoint(NamedTuple):
    """An open checkpoint.

    Attributes:
        format: its name in the provenance.
        params: the parameters, without any prefix.
        moments: the optimizer state, if there is one and the user wants it.
        layout: how the arrays are spelled.
        about: JSON of the layout, for provenance.
        notes: further lines for the log and the provenance.
    """

    format: Format
    params: TensorFile
    moments: Moments | None
    layout: FlaxLayout
    about: Mapping[str, Any]
    notes: tuple[str, ...] = ()
