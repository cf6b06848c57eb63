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


@pytest.mark.parametrize("count", [1, 511, 512, 513, 1025])
def test_queries_around_the_size_of_a_chunk_are_all_ranked(count):
    random = np.random.default_rng(count)
    queries = random.integers(-3, 4, (count, 4)).astype(np.float32)
    items = random.integers(-3, 4, (29, 4)).astype(np.float32)
    query_owner, item_owner = random.integers(0, 12, count), random.integers(0, 12, 29)
    ranks = best_ranks(queries, items, query_owner=query_owner, item_owner=item_owner)
    assert ranks.tolist() == naive(queries, items, query_owner, item_owner)


@pytest.mark.parametrize("seed", range(4))
def test_repeated_images_and_captions_of_unit_length_tie_exactly(seed):
    """Each item three times, in any order: ranks are those of the distinct items, then of their places."""
    random = np.random.default_rng(seed)
    items = random.standard_normal((37, 96)).astype(np.float32)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    order = random.permutation(np.repeat(np.arange(37), 3))
    ranks = best_ranks(items, items[order], query_owner=np.arange(37), item_owner=order)
    assert ranks.tolist() == [0] * 37  # each one finds itself, whichever copy is first
    owner = np.arange(111)  # each copy has its own owner: the copies before it are ranked higher
    ranks = best_ranks(items[order], items[order], query_owner=owner, item_owner=owner)
    assert ranks.tolist() == [np.count_nonzero(order[:i] == order[i]) for i in owner]


def test_zeros_of_either_sign_are_equal():
    items = np.array([[0.0, 1.0], [-0.0, 1.0]], np.float32)
    ranks = best_ranks(items, items, query_owner=np.arange(2), item_owner=np.arange(2))
    assert ranks.tolist() == [0, 1]


def test_no_queries_have_no_ranks():
    rows, nothing = np.ones((2, 3), np.float32), np.zeros((0, 3), np.float32)
    none = np.zeros(0, np.int64)
    assert best_ranks(nothing, rows, query_owner=none, item_owner=np.arange(2)).tolist() == []


def test_a_query_without_a_right_item_is_never_found():
    ranks = best_ranks(np.ones((1, 2), np.float32), np.ones((4, 2), np.float32), query_owner=np.array([9]),
                       item_owner=np.zeros(4, np.int64))  # fmt: skip
    assert ranks.tolist() == [4]


def test_embeddings_that_are_not_finite_are_refused():
    rows = np.ones((2, 2), np.float32)
    bad = np.array([[1, np.nan]], np.float32)
    with pytest.raises(NonFiniteError, match="1 embeddings of items are not finite"):
        best_ranks(rows, bad, query_owner=np.arange(2), item_owner=np.arange(1))
