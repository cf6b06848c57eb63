"""Approximate search: recall against exact search, exact scores, and graphs that are built again."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest

from clipa_eqx.errors import ConfigError
from clipa_eqx.search import approximate
from clipa_eqx.search.exact import best_rows
from clipa_eqx.search.index import Found, Part, SearchIndex


def unit(rng, rows, width=16):
    vectors = rng.normal(size=(rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def index_of(vectors, state="one"):
    half = len(vectors) // 2
    order = np.random.default_rng(1).permutation(len(vectors))  # rows on disk in another order than their numbers
    parts = [
        Part(
            vectors=partial(vectors.take, some, axis=0),
            rows=None if i else np.arange(len(some))[::-1],
            numbers=some if i else some[::-1],
        )
        for i, some in enumerate((order[:half], order[half:]))
    ]
    return SearchIndex(
        kind="images",
        title="vectors",
        model={},
        width=vectors.shape[1],
        state=state,
        parts=parts,
        find=lambda number: Found(str(number), None, None),
    )


def test_rows_are_found_by_their_numbers():
    vectors = unit(np.random.default_rng(0), 51)
    numbers = np.array([50, 3, 0, 49, 3])
    np.testing.assert_array_equal(index_of(vectors).rows(numbers), vectors[numbers])
    with pytest.raises(IndexError, match="no row 51"):
        index_of(vectors).rows(np.array([3, 51]))


def test_recall_is_measured_against_exact_search_and_scores_are_exact(tmp_path):
    rng = np.random.default_rng(0)
    index = index_of(unit(rng, 3000))
    graph = approximate.open_graph(index, tmp_path)
    queries = unit(rng, 20)
    exact = best_rows(index.blocks(), queries, k=10)
    found = approximate.approximate_rows(graph, index, queries, k=10)
    shared = [len(np.intersect1d(*pair)) for pair in zip(exact.numbers, found.numbers, strict=True)]
    assert graph.recall > 0.95
    assert np.mean(shared) / 10 > 0.95
    for row in range(20):
        both = np.isin(found.numbers[row], exact.numbers[row])
        np.testing.assert_array_equal(
            found.scores[row][both], exact.scores[row][np.isin(exact.numbers[row], found.numbers[row])]
        )


def test_a_graph_that_finds_nothing_right_has_a_low_recall():
    rng = np.random.default_rng(0)
    index = index_of(unit(rng, 300))
    wrong = approximate._usearch().Index(ndim=16, metric="ip", dtype="f32")
    wrong.add(np.arange(300, dtype=np.uint64), unit(rng, 300))
    assert approximate.measured_recall(index, wrong) < 0.6


def test_a_graph_is_used_again_until_rows_change(tmp_path):
    index = index_of(unit(np.random.default_rng(0), 200))
    first = approximate.open_graph(index, tmp_path)
    written = (tmp_path / "approximate.usearch").stat().st_mtime_ns
    assert approximate.open_graph(index, tmp_path).recall == first.recall
    assert (tmp_path / "approximate.usearch").stat().st_mtime_ns == written
    approximate.open_graph(dataclasses.replace(index, state="two"), tmp_path)
    assert (tmp_path / "approximate.usearch").stat().st_mtime_ns != written
    assert json.loads((tmp_path / "approximate.about").read_text())["state"] == "two"


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"no graph", lambda data: b""])
def test_a_damaged_graph_is_built_again(tmp_path, damage):
    index = index_of(unit(np.random.default_rng(0), 200))
    approximate.open_graph(index, tmp_path)
    path = tmp_path / "approximate.usearch"
    path.write_bytes(damage(path.read_bytes()))
    graph = approximate.open_graph(index, tmp_path)
    assert graph.recall > 0.9
    assert len(graph.opened) == 200
    assert len(approximate._usearch().Index.restore(str(path), view=True)) == 200


def test_a_graph_that_cannot_be_saved_is_one_message(tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("Failed to write")

    monkeypatch.setattr(approximate._usearch().Index, "save", full)
    with pytest.raises(ConfigError, match=r"cannot be written \(Failed to write\); leave out --approximate"):
        approximate.open_graph(index_of(unit(np.random.default_rng(0), 20)), tmp_path)


def test_a_query_with_too_few_candidates_is_searched_exactly():
    rng = np.random.default_rng(0)
    vectors = unit(rng, 50)
    index, queries = index_of(vectors), unit(rng, 3)
    few = approximate._usearch().Index(ndim=16, metric="ip", dtype="f32")
    few.add(np.arange(4, dtype=np.uint64), vectors[:4])
    found = approximate.approximate_rows(approximate.Graph(opened=few, recall=0.0), index, queries, k=5)
    np.testing.assert_array_equal(found.numbers, best_rows(index.blocks(), queries, k=5).numbers)


def test_without_the_package_the_message_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "usearch", None)
    monkeypatch.setitem(__import__("sys").modules, "usearch.index", None)
    with pytest.raises(ConfigError, match="needs the package usearch; install it with `pip install usearch`"):
        approximate.open_graph(index_of(unit(np.random.default_rng(0), 20)), tmp_path)
