"""Approximate search with usearch, for more rows than can be compared one by one, and its measured recall."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from clipa_eqx.errors import ConfigError, pip_install
from clipa_eqx.json_files import read_json_object
from clipa_eqx.progress import progress_bar
from clipa_eqx.replacing import new_file, write_text
from clipa_eqx.search.exact import Best, Block, best_rows
from clipa_eqx.search.index import SearchIndex

GRAPH_FILE, ABOUT_FILE = "approximate.usearch", "approximate.about"

TESTED_ROWS, TESTED_K = 32, 10
"""Rows whose neighbors are also searched exactly, to measure recall, and how many neighbors of each."""

_CANDIDATES = 4
"""Candidates per result; their products are computed exactly, and the best are the results."""

_LEAST_CANDIDATES = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph of neighbors, on disk.

    Attributes:
        opened: the index of usearch; its keys are the numbers of rows.
        recall: share of the ``TESTED_K`` nearest rows that it finds, for ``TESTED_ROWS`` sampled rows as queries.
    """

    opened: Any
    recall: float


def open_graph(index: SearchIndex, folder: Path) -> Graph:
    """The graph of an index in ``folder``; it is built if there is none, or if rows have changed since.

    Raises:
        ConfigError: usearch is not installed, or the folder cannot be written.
    """
    usearch = _usearch()
    path, about = folder / GRAPH_FILE, folder / ABOUT_FILE
    if path.is_file() and about.is_file():
        found = read_json_object(about, error=ConfigError, hint=f"delete it, and {path} is built again")
        if found.get("state") == index.state and isinstance(found.get("recall"), float):
            opened = _restored(usearch, path, rows=len(index))
            if opened is not None:
                return Graph(opened=opened, recall=found["recall"])
    opened = usearch.Index(ndim=index.width, metric="ip", dtype="f32")
    with progress_bar(what="building the graph", total=len(index), unit="row") as bar:
        for block in index.blocks():
            opened.add(block.numbers.astype(np.uint64), np.ascontiguousarray(block.vectors, np.float32))
            bar.update(len(block.numbers))
    graph = Graph(opened=opened, recall=measured_recall(index, opened))
    try:
        about.unlink(missing_ok=True)
        with new_file(path) as file:
            opened.save(str(file))
        write_text(about, json.dumps({"state": index.state, "recall": graph.recall}) + "\n")
    except (OSError, RuntimeError, ValueError) as error:  # usearch raises the last two
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(
            f"{path} cannot be written ({reason}); leave out --approximate, which searches every row"
        ) from error
    return graph


def _restored(usearch: Any, path: Path, *, rows: int) -> Any | None:
    """The graph in a file; None if the file is damaged."""
    try:
        opened = usearch.Index.restore(str(path), view=True)
    except (OSError, RuntimeError, ValueError) as error:
        _log.warning("%s is damaged (%s), and is built again", path, error)
        return None
    if opened is None or len(opened) != rows:
        _log.warning("%s is damaged, and is built again", path)
        return None
    return opened


def approximate_rows(
    graph: Graph, index: SearchIndex, queries: Float32[np.ndarray, "queries embed"], *, k: int
) -> Best:
    """Like ``best_rows``, but only among the candidates that the graph gives. Scores are exact.

    A query for which the graph gives fewer candidates than results is searched exactly.

    Raises:
        ConfigError: ``k`` below 1.
    """
    found: list[Best] = []
    for query in queries:
        count = min(len(index), max(_LEAST_CANDIDATES, _CANDIDATES * k))
        numbers = np.sort(np.asarray(graph.opened.search(query, count).keys).astype(np.int64))
        is_enough = len(numbers) >= min(k, len(index))  # a graph may have rows that no path leads to
        blocks = [Block(numbers, index.rows(numbers))] if is_enough else index.blocks()
        found.append(best_rows(blocks, query[None], k=k))
    return Best(np.concatenate([one.numbers for one in found]), np.concatenate([one.scores for one in found]))


def measured_recall(index: SearchIndex, opened: Any) -> float:
    """Share of the nearest rows by exact search that the graph finds, over sampled rows as queries."""
    chosen = np.random.default_rng(0).permutation(len(index))[:TESTED_ROWS].astype(np.int64)
    queries = np.ascontiguousarray(index.rows(np.sort(chosen)), np.float32)
    k = min(TESTED_K, len(index))
    exact = best_rows(index.blocks(), queries, k=k).numbers
    found = approximate_rows(Graph(opened=opened, recall=0.0), index, queries, k=k).numbers
    return _shared(exact, found) / exact.size


def _shared(one: Int64[np.ndarray, "queries k"], other: Int64[np.ndarray, "queries k"]) -> int:
    return sum(len(np.intersect1d(*pair)) for pair in zip(one, other, strict=True))


def _usearch() -> Any:
    try:
        import usearch.index
    except ImportError as error:
        raise ConfigError(
            f"--approximate needs the package usearch; install it with `{pip_install('usearch')}`, or leave it out to "
            "search every row"
        ) from error
    return usearch.index
