"""Ranks of a search against a naive double loop, with ties, in any chunks."""

import numpy as np
import pytest

from clipa_eqx.errors import NonFiniteError
from clipa_eqx.evals.recall import best_ranks


def naive(queries, items, query_owner, item_owner):
    """Ranks by sorting all items of each query, one by one."""
    ranks = []
    for query, owner in zip(queries, query_owner, strict=True):
        products = [sum(float(a) * float(b) for a, b in zip(query, item, strict=True)) for item in items]
        order = sorted(range(len(items)), key=lambda i: (-products[i], i))
        right = [place for place, i in enumerate(order) if item_owner[i] == owner]
        ranks.append(right[0] if right else len(items))
    return ranks


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_ranks_equal_those_of_a_double_loop(seed, chunk):
    random = np.random.default_rng(seed)
    items = random.integers(-2, 3, (41, 3)).astype(np.float32)  # small whole numbers: products are exact, ties abound
    queries = random.integers(-2, 3, (17, 3)).astype(np.float32)
    query_owner, item_owner = random.integers(0, 9, 17), random.integers(0, 8, 41)
    ranks = best_ranks(queries, items, query_owner=query_owner, item_owner=item_owner, chunk=chunk)
    assert ranks.tolist() == naive(queries, items, query_owner, item_owner)


def test_unit_vectors_that_are_equal_tie_in_their_order():
    vector = np.random.default_rng(0).standard_normal(768).astype(np.float32)
    items = np.stack([vector / np.linalg.norm(vector)] * 33)
    ranks = best_ranks(items[:5], items, query_owner=np.arange(5), item_owner=np.arange(33))
    assert ranks.tolist() == [0, 1, 2, 3, 4]


def test_a_query_without_a_right_item_is_never_found():
    ranks = best_ranks(np.ones((1, 2), np.float32), np.ones((4, 2), np.float32), query_owner=np.array([9]),
                       item_owner=np.zeros(4, np.int64))  # fmt: skip
    assert ranks.tolist() == [4]


def test_embeddings_that_are_not_finite_are_refused():
    rows = np.ones((2, 2), np.float32)
    bad = np.array([[1, np.nan]], np.float32)
    with pytest.raises(NonFiniteError, match="1 embeddings of items are not finite"):
        best_ranks(rows, bad, query_owner=np.arange(2), item_owner=np.arange(1))
