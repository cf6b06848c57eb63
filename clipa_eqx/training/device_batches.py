"""Batches on their way to the devices, and how long the devices waited for them."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipa_eqx.data.prefetch import Batch
from clipa_eqx.sharding import put_global_batch, replicated

COUNTED = ("truncated", "substituted", "pieces", "unknown")
"""Columns of a batch that are only summed: rows of each kind, word pieces, and pieces that are [UNK]."""


class DeviceBatch(NamedTuple):
    """A batch on the devices.

    Attributes:
        arrays: ``image`` uint8[batch h w 3] and ``tokens`` int32[batch length], split over the batch axes.
        sample_id: the records of this process's rows.
        counts: sums of the columns ``COUNTED`` over all processes, on the devices.
        waited_seconds: how long this process waited for the batch.
        starved_seconds: how long the devices were idle in that time, at most.
    """

    arrays: dict[str, jax.Array]
    sample_id: np.ndarray
    counts: dict[str, jax.Array]
    waited_seconds: float
    starved_seconds: float


class DeviceBatches:
    """Takes batches from the host and sends them to the devices of a mesh without waiting for the copy."""

    def __init__(self, batches: Iterator[Batch], mesh: Mesh) -> None:
        self._batches, self._mesh = batches, mesh
        self._count = jax.jit(partial(jax.tree.map, jnp.sum), out_shardings=replicated(mesh))

    def take(self, *, running: Any = None) -> DeviceBatch:
        """The next batch; ``running`` is an output of the step that the devices compute in the meantime.

        Raises:
            RuntimeError: the stream ended, which the stream of a run never does.
        """
        since = time.perf_counter()
        with jax.profiler.TraceAnnotation("next_batch"):
            rows = next(self._batches, None)
        waited = time.perf_counter() - since
        if rows is None:
            raise RuntimeError("the train stream ended; it never should")
        # If the step finished before the next batch arrived, the devices were idle for at most this wait.
        is_starved = running is not None and running.is_ready()
        arrays = put_global_batch({name: rows[name] for name in ("image", "tokens", *COUNTED)}, self._mesh)
        # Counted on the devices, over the rows of all processes: the host waits for nothing.
        counts = self._count({name: arrays.pop(name) for name in COUNTED})
        return DeviceBatch(arrays, rows["sample_id"], counts, waited, waited if is_starved else 0.0)
