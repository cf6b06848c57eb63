"""The optimizer state in a source file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from conversion.weights.tensors import TensorFile


@dataclass(frozen=True, kw_only=True)
class Moments:
    """The optimizer state in a source file.

    Attributes:
        mu: Adam's first moments, by the names of their parameters.
        nu: Adam's second moments, by the names of their parameters.
        updates: number of updates that Adam has counted.
        schedule_steps: number of updates that the schedules have counted; a run resumes after this step.
        absent: names of parameters without moments, which were frozen.
        about: JSON that an export needs to write the same file again.
    """

    mu: TensorFile
    nu: TensorFile
    updates: int
    schedule_steps: int
    absent: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])
