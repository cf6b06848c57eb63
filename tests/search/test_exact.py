"""Exact search: blocks of any size give the rows of one argsort, bit by bit, and ties are ordered by number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa_eqx.errors import ConfigError
from clipa_eqx.search.exact import Block, best_rows


def blocks_of(vectors, *, rows):
    numbers = np.arange(len(vectors))
    return [Block(numbers[at : at + rows], vectors[at : at + rows]) for at in range(0, len(vectors), rows)]


def by_argsort(vectors, query, k):
    scores = np.vecdot(vectors.astype(np.float32), query)
    order = np.argsort(-scores, kind="stable")[:k]
    return order, scores[order]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 60),
    width=st.integers(1, 40),
    block=st.integers(1, 70),
    k=st.integers(1, 70),
    levels=st.sampled_from([1, 2, 1000]),
    dtype=st.sampled_from([np.float32, np.float16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_blocks_give_what_one_argsort_gives(rows, width, block, k, levels, dtype, seed):
    rng = np.random.default_rng(seed)
    vectors = (rng.integers(0, levels, (rows, width)) / levels + rng.normal(size=(rows, width)) * (levels > 2)).astype(
        dtype
    )
    queries = rng.normal(size=(3, width)).astype(np.float32)
    found = best_rows(blocks_of(vectors, rows=block), queries, k=k)
    for place, query in enumerate(queries):
        numbers, scores = by_argsort(vectors, query, k)
        np.testing.assert_array_equal(found.numbers[place], numbers)
        np.testing.assert_array_equal(found.scores[place], scores)


def test_equal_scores_are_ordered_by_number_also_if_blocks_are_not():
    vectors = np.ones((6, 4), np.float32)
    blocks = [Block(np.array([5, 0]), vectors[:2]), Block(np.array([3, 1, 4, 2]), vectors[2:])]
    assert best_rows(blocks, np.ones((1, 4), np.float32), k=4).numbers.tolist() == [[0, 1, 2, 3]]


def test_nothing_to_search_gives_nothing_and_k_0_is_refused():
    assert best_rows([], np.ones((2, 4), np.float32), k=3).numbers.shape == (2, 0)
    with pytest.raises(ConfigError, match="k is 0"):
        best_rows([], np.ones((1, 4), np.float32), k=0)
