"""Seconds per query of exact and of approximate search, next to one product of all vectors in memory and one sort."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from clipa_eqx.search.approximate import approximate_rows, open_graph
from clipa_eqx.search.exact import best_rows
from clipa_eqx.search.index import Found, Part, SearchIndex

_K = 10


def main() -> None:
    """Search random vectors and print a line per way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--approximate", action="store_true", help="also build and search a graph (usearch)")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "vectors.npy"
        vectors = _clustered(rng, arguments.rows, arguments.width)
        queries = _unit(
            vectors[rng.integers(0, arguments.rows, arguments.queries)] + 0.02 * _noise(rng, vectors, arguments)
        )
        np.save(path, vectors)
        on_disk: Float32[np.ndarray, "rows width"] = np.load(path, mmap_mode="r")
        index = SearchIndex(
            kind="images",
            title="random vectors",
            model={},
            width=arguments.width,
            state="random",
            parts=[Part(vectors=lambda: on_disk, rows=None, numbers=np.arange(arguments.rows))],
            find=lambda number: Found(str(number), None, None),
        )
        print(f"{arguments.rows:,} vectors of {arguments.width}, {_K} results, median of {arguments.queries} queries")
        _report("one product in memory, one sort", lambda one: np.argsort(-(vectors @ one[0]))[:_K], queries)
        _report("exact, in blocks from disk", lambda one: best_rows(index.blocks(), one, k=_K), queries)
        if arguments.approximate:
            since = time.perf_counter()
            graph = open_graph(index, Path(scratch))
            print(f"graph built in {time.perf_counter() - since:.1f} s, recall@10 {graph.recall:.3f}")
            _report("approximate", lambda one: approximate_rows(graph, index, one, k=_K), queries)


def _clustered(rng: np.random.Generator, rows: int, width: int) -> Float32[np.ndarray, "rows width"]:
    """Unit vectors around 1,000 centers, since vectors without any neighbors are no model of embeddings."""
    centers = rng.standard_normal((1000, width), dtype=np.float32)
    return _unit(centers[rng.integers(0, 1000, rows)] + rng.standard_normal((rows, width), dtype=np.float32))


def _noise(
    rng: np.random.Generator, vectors: Float32[np.ndarray, "rows width"], arguments: argparse.Namespace
) -> Float32[np.ndarray, "queries width"]:
    return rng.standard_normal((arguments.queries, vectors.shape[1]), dtype=np.float32)


def _unit(vectors: Float32[np.ndarray, "rows width"]) -> Float32[np.ndarray, "rows width"]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _report(
    name: str, search: Callable[[Float32[np.ndarray, "1 width"]], object], queries: Float32[np.ndarray, "queries width"]
) -> None:
    seconds: list[float] = []
    for query in queries:
        since = time.perf_counter()
        search(query[None])
        seconds.append(time.perf_counter() - since)
    print(f"{name}: {1000 * statistics.median(seconds):.2f} ms per query")


if __name__ == "__main__":
    main()
