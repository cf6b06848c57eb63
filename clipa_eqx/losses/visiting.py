"""Orders in which a device visits the columns: in chunks of the gathered columns, or as blocks in a ring.

Both call ``visit(columns) -> (mine, theirs)`` and merge the results: ``mine`` per row of the device, ``theirs`` per
column. In the end each device has its rows' ``mine`` over all columns, and its columns' ``theirs`` over all rows.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Mine = TypeVar("Mine")
Theirs = TypeVar("Theirs")
Visit = Callable[[Any], tuple[Mine, Theirs]]
Merge = Callable[[tuple[Mine, Theirs], tuple[Mine, Theirs]], tuple[Mine, Theirs]]


def visit_in_ring(
    visit: Visit[Mine, Theirs],
    merge: Merge[Mine, Theirs],
    *,
    columns: Any,
    mine: Mine,
    theirs: Theirs,
    names: tuple[str, ...],
    parts: int,
) -> tuple[Mine, Theirs]:
    """Visit the columns of all devices, which travel in a ring over the mesh axes ``names``; nothing is gathered.

    In each step a device sends on its block, and the sums of the block before it, while it computes: no transfer waits
    for the computation of the same step. After the last step the sums are sent home.

    Args:
        visit: results of one block of columns.
        merge: combines two results.
        columns: the device's own columns, a tree of arrays (columns, ...).
        mine: results of no column.
        theirs: results of no row, for as many columns as the device has.
        names: mesh axes of the ring; empty for one device.
        parts: number of devices in the ring.
    """

    def send(tree: Any) -> Any:
        if parts == 1:
            return tree
        pairs = [(device, (device + 1) % parts) for device in range(parts)]
        return jax.tree.map(lambda x: lax.ppermute(x, names, pairs), tree)

    def step(carry: tuple[Any, Mine, Theirs], _: None) -> tuple[tuple[Any, Mine, Theirs], None]:
        block, mine, theirs = carry
        following, arriving = send(block), send(theirs)
        return (following, *merge((mine, arriving), visit(block))), None

    (block, mine, theirs), _ = lax.scan(step, (columns, mine, theirs), length=parts - 1)
    mine, theirs = merge((mine, send(theirs)), visit(block))
    return mine, send(theirs)


def visit_in_chunks(
    visit: Visit[Mine, Theirs],
    merge: Merge[Mine, Theirs],
    *,
    columns: Any,
    exclude: Callable[[Any, Any], Any],
    mine: Mine,
    theirs: Theirs,
    chunk: int,
) -> tuple[Mine, Theirs]:
    """Visit the columns a chunk at a time, in order.

    If the chunk does not divide the columns, the last one begins earlier, and columns that were visited already are
    excluded. So no array is padded.

    Args:
        visit: results of one chunk of columns.
        merge: combines two results; those of excluded columns must change nothing.
        columns: all columns, a tree of arrays (columns, ...).
        exclude: ``(chunk, is_kept) -> chunk`` without the columns for which bool ``is_kept`` is false.
        mine: results of no column.
        theirs: results of no row, for all columns.
        chunk: columns per chunk.
    """
    count = jax.tree.leaves(columns)[0].shape[0]
    size = min(chunk, count)

    def step(carry: tuple[Mine, Theirs], begin: Any) -> tuple[tuple[Mine, Theirs], None]:
        mine, theirs = carry
        start = jnp.minimum(begin, count - size)

        def part(x: Any) -> Any:
            return lax.dynamic_slice_in_dim(x, start, size)

        is_new = start + jnp.arange(size) >= begin
        visited = visit(exclude(jax.tree.map(part, columns), is_new))
        mine, merged = merge((mine, jax.tree.map(part, theirs)), visited)
        theirs = jax.tree.map(lambda x, y: lax.dynamic_update_slice_in_dim(x, y, start, 0), theirs, merged)
        return (mine, theirs), None

    (mine, theirs), _ = lax.scan(step, (mine, theirs), jnp.arange(0, count, size))
    return mine, theirs
