"""Optimizer state of a source file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from conversion.weights.tensors import TensorFile


@dataclass(frozen=True, kw_only=True)
class Moments:
    """The optimizer state of a source.

    Attributes:
        mu: Adam's first moments under the names of their parameters.
        nu: the second moments.
        updates: Adam's count.
        schedule_steps: how many updates the schedules have seen: the step a run continues after.
        absent: names of the parameters that have no moments because they were frozen.
        about: JSON that an export needs to write the same file again.
    """

    mu: TensorFile
    nu: TensorFile
    updates: int
    schedule_steps: int
    absent: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])
