"""Ranks and recall of a search among embeddings, exact and with ties in the order of the items."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from clipa_eqx.errors import NonFiniteError
from clipa_eqx.progress import progress_bar

CHUNK = 512
"""Queries at once; memory is for this many rows of similarities."""


def best_ranks(
    queries: Float[np.ndarray, "queries embed"],
    items: Float[np.ndarray, "items embed"],
    *,
    query_owner: Int[np.ndarray, " queries"],
    item_owner: Int[np.ndarray, " items"],
    what: str = "ranking",
    chunk: int = CHUNK,
) -> Int[np.ndarray, " queries"]:
    """For each query the rank, from 0, of the first right item: one with the owner of the query.

    Items are ranked by their inner product with the query, in float64; equal ones in their order. Equal items have
    equal products. Memory is O(chunk * items).

    Args:
        query_owner: what each query belongs to, such as the number of an image.
        item_owner: the same for each item.
        what: the work, for the progress bar.
        chunk: queries at once.

    Returns:
        Ranks; the number of items where none is right.

    Raises:
        NonFiniteError: an embedding is NaN or infinite.
    """
    for name, rows in (("queries", queries), ("items", items)):
        if not np.isfinite(rows).all():
            raise NonFiniteError(
                f"{np.count_nonzero(~np.isfinite(rows).all(axis=1))} embeddings of {name} are not finite"
            )
    # A matrix product may round equal columns differently, so equal items share one column: ties stay ties.
    first: dict[bytes, int] = {}
    column = np.array([first.setdefault((row + 0.0).tobytes(), len(first)) for row in items])  # -0.0 becomes 0.0
    different = items[np.unique(column, return_index=True)[1]]
    columns = np.ascontiguousarray(different.astype(np.float64).T)
    found = [
        ranks_in(
            (queries[part].astype(np.float64) @ columns)[:, column],
            query_owner=query_owner[part],
            item_owner=item_owner,
        )
        for part in progress_bar(_parts(len(queries), chunk), what=what, total=-(-len(queries) // chunk), unit="chunk")
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def ranks_in(
    similarity: Float[np.ndarray, "queries items"],
    *,
    query_owner: Int[np.ndarray, " queries"],
    item_owner: Int[np.ndarray, " items"],
) -> Int[np.ndarray, " queries"]:
    """The rank of the first right item in each row of similarities, as ``best_ranks`` counts it."""
    is_right = query_owner[:, None] == item_owner[None, :]
    best = np.where(is_right, similarity, -np.inf).max(axis=1, initial=-np.inf)
    # The first of the right items with the best similarity; equal items before it are ranked higher.
    is_equal = similarity == best[:, None]
    first = np.argmax(is_right & is_equal, axis=1)
    is_before = np.arange(similarity.shape[1])[None, :] < first[:, None]
    rank = (similarity > best[:, None]).sum(axis=1) + (is_equal & is_before).sum(axis=1)
    return np.where(is_right.any(axis=1), rank, similarity.shape[1]).astype(np.int64)


def _parts(count: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, count, chunk))
