"""Sums and rows of all processes, exact: bits are exchanged, because jax would convert 64-bit numbers to 32 bits."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Int

_AT_ONCE = 1 << 22
"""Numbers of all processes that one exchange has at most."""


def sum_processes(values: Int[np.ndarray, "*shape"] | Float[np.ndarray, "*shape"]) -> np.ndarray:
    """The sum of an array over all processes, on each of them.

    Memory is that of the array and of a few million numbers, for any number of processes.
    """
    if jax.process_count() == 1:
        return values
    flat = values.ravel()
    size = max(1, _AT_ONCE // jax.process_count())
    parts = [_all_processes(flat[start : start + size]).sum(axis=0) for start in range(0, len(flat), size)]
    return np.concatenate([flat[:0], *parts]).astype(values.dtype).reshape(values.shape)


def put_rows(
    found: Float[np.ndarray, "total dim"] | Int[np.ndarray, "total dim"],
    rows: Float[np.ndarray, "rows dim"] | Int[np.ndarray, "rows dim"],
    at: Int[np.ndarray, " rows"],
) -> None:
    """Write the rows of all processes into an array that each of them holds.

    Args:
        found: gets the rows.
        rows: those of this process; all processes pass as many, of the dtype of ``found``.
        at: their places in ``found``; negative for rows that are padding.
    """
    if jax.process_count() == 1:
        found[at[at >= 0]] = rows[at >= 0]
        return
    gathered = zip(_all_processes(at.astype(np.int64)), _all_processes(rows.astype(found.dtype)), strict=True)
    for places, values in gathered:
        found[places[places >= 0]] = values[places >= 0]


def _all_processes(values: np.ndarray) -> np.ndarray:
    """The arrays of all processes, which have the same shape and dtype, along a new first axis."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return np.asarray(multihost_utils.process_allgather(bits)).view(values.dtype)
