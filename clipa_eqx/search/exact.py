"""Exact search: the best rows of any number of vectors, block by block."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64

from clipa_eqx.errors import ConfigError


class Block(NamedTuple):
    """Some of the vectors that are searched.

    Attributes:
        numbers: number of each row, which breaks ties and names it in the result.
        vectors: unit vectors, float32 or float16.
    """

    numbers: Int64[np.ndarray, " rows"]
    vectors: Float[np.ndarray, "rows embed"]


class Best(NamedTuple):
    """The best rows of each query, best first; fewer than asked for if there are no more.

    Attributes:
        numbers: their numbers.
        scores: their products with the query.
    """

    numbers: Int64[np.ndarray, "queries k"]
    scores: Float32[np.ndarray, "queries k"]


def best_rows(blocks: Iterable[Block], queries: Float32[np.ndarray, "queries embed"], *, k: int) -> Best:
    """The ``k`` rows with the largest product with each query; equal products are ordered by number.

    The result does not depend on how rows are split into blocks, bit by bit: each product is a sum over one row. Memory
    is that of one block.

    Raises:
        ConfigError: ``k`` below 1.
    """
    if k < 1:
        raise ConfigError(f"k is {k}; it must be at least 1")
    kept = [(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
    for block in blocks:
        vectors = np.ascontiguousarray(block.vectors, np.float32)
        for place, query in enumerate(queries):
            # Not a matrix product: its rounding depends on the number of rows.
            scores = np.vecdot(vectors, query).astype(np.float32)
            numbers, former = kept[place]
            kept[place] = _merged(np.append(numbers, block.numbers), np.append(former, scores), k)
    if not kept:
        return Best(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
    return Best(np.stack([one for one, _ in kept]), np.stack([one for _, one in kept]))


def _merged(
    numbers: Int64[np.ndarray, " rows"], scores: Float32[np.ndarray, " rows"], k: int
) -> tuple[Int64[np.ndarray, " kept"], Float32[np.ndarray, " kept"]]:
    if len(scores) > k:
        # All rows that reach the k-th score, so that ties are decided by number.
        reached = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
        numbers, scores = numbers[reached], scores[reached]
    order = np.lexsort((numbers, -scores))[:k]
    return numbers[order], scores[order]
