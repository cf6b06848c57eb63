"""Facts that the names and shapes of a weight file establish about the config of its model."""

import math
from typing import Any, NamedTuple


class Fact(NamedTuple):
    """Values that a weight file allows for one field of the config, and why.

    With several ``values``, or with ``is_hint``, someone must choose or confirm one of them.
    """

    values: tuple[Any, ...]
    why: str
    is_hint: bool = False

    @property
    def is_certain(self) -> bool:
        """The file alone determines the field."""
        return len(self.values) == 1 and not self.is_hint


def square_side(count: int) -> int | None:
    """The side of a square of ``count`` cells, or None if there is no such square."""
    side = math.isqrt(count)
    return side if side * side == count and side else None
