"""Mistakes in the position tables of a step: missing, swapped axes, the other denominator."""

from collections.abc import Iterator

import numpy as np

from conversion.compare.causes import (
    DENOMINATOR,
    NO_POSITION,
    SWAPPED_AXES,
    Change,
    StepOfTwo,
    changed_leaves,
)
from conversion.compare.replay import Float64Array

_HALF_ATOL = 4e-3
"""Largest error of values up to 1 that were rounded to float16 or bfloat16."""

_TABLE_ATOL = 1e-5
"""Position tables are float32, and programs sum in different precision."""


def position_changes(pair: StepOfTwo) -> Iterator[Change]:
    """Other tables in place of A's."""
    table = pair.leaves_a["table"]
    yield changed_leaves("table", NO_POSITION, "B adds none", {"table": np.zeros_like(table)})
    rows, dim = table.shape
    tables: list[Float64Array] = []
    if pair.grid is not None and dim % 4 == 0 and dim >= 8:
        tables = [sincos_2d(pair.grid, dim, less) for less in (0, 1)]
        half = dim // 2
        swapped = np.concatenate([table[:, half:], table[:, :half]], axis=1)
        yield changed_leaves("table", SWAPPED_AXES, "B has y first", {"table": swapped}, _TABLE_ATOL)
    if pair.grid is None and dim % 2 == 0 and dim >= 4:
        tables = [sincos_1d(rows, dim, less) for less in (0, 1)]
    for own, made, name in zip(tables, reversed(tables), ("q-1", "q"), strict=True):
        # Only if A's table is one formula can B's be the other.
        if own.shape == table.shape and np.abs(own - table).max() <= _HALF_ATOL:
            yield changed_leaves("table", DENOMINATOR, f"B divides by {name}", {"table": made}, _TABLE_ATOL)


def sincos_2d(grid: tuple[int, int], dim: int, less: int) -> Float64Array:
    """Image positions (1 + patches, dim) with denominator q - ``less``, zeros for the class token first."""
    q = dim // 4
    omega = 10000.0 ** -(np.arange(q) / (q - less))
    y, x = (axis.reshape(-1, 1) * omega[None] for axis in np.mgrid[: grid[0], : grid[1]].astype(np.float64))
    table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    return np.concatenate([np.zeros_like(table[:1]), table])


def sincos_1d(length: int, dim: int, less: int) -> Float64Array:
    """Text positions (length, dim) with denominator q - ``less``."""
    half = dim // 2
    angle = np.arange(length)[:, None] * 10000.0 ** -(np.arange(half) / (half - less))[None]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
