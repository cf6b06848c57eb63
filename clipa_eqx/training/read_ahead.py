"""Batches that are fetched ahead of their steps for a second, to measure how fast the input makes them."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple

from clipa_eqx.data.prefetch import Batch

SECONDS = 1.0
"""Least time to measure, from the first batch on. It is longer if the first batch, or two that were waited for, take
longer."""

_LONGEST = 120.0
_LONGEST_WAVE = 30.0
_MOST_BYTES = 2**30
_END_SECONDS = 5.0


class Fetch(NamedTuple):
    """One batch that was fetched.

    Attributes:
        end: time at which it came, seconds of ``time.perf_counter``.
        wait: seconds of waiting for it.
    """

    end: float
    wait: float


class ReadAhead(Iterator[Batch]):
    """The batches of an iterator in their order. A thread fetches the first ones as fast as they come, and counts.

    Nobody waits for the measurement: a batch that the thread has fetched is returned at once, and one that it is
    waiting for as soon as it comes. Then the thread ends. Use it in a ``with`` block within that of the iterator.
    """

    def __init__(self, batches: Iterator[Batch], *, most: int, seconds: float = SECONDS) -> None:
        """Start to fetch.

        Args:
            most: batches that are needed in all; the thread fetches no more.
            seconds: time to measure.
        """
        self._batches, self._most, self._seconds = batches, most, seconds
        self._ready: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
        self._fetched: list[Fetch] = []
        self._rows = 0
        self._is_at_least = False
        self._stop = threading.Event()
        self._taken = threading.Event()
        self._is_direct = False
        self._thread = threading.Thread(target=self._fetch, name="read-ahead", daemon=True)
        self._thread.start()

    @property
    def is_measured(self) -> bool:
        """True once the measurement is over."""
        return not self._thread.is_alive()

    @property
    def is_at_least(self) -> bool:
        """True if the batches were so large that the thread had to wait until some were taken."""
        return self._is_at_least

    def images_per_second(self) -> float | None:
        """Rows per second that the input makes; None if too few batches were fetched."""
        per_second = batches_per_second(self._fetched)
        return None if per_second is None else self._rows * per_second

    def __next__(self) -> Batch:
        """Return the next batch; raise what the iterator raised in its place."""
        if not self._is_direct:
            found = self._ready.get()
            self._taken.set()
            if isinstance(found, BaseException):
                self._is_direct = True
                raise found
            if found is not None:
                return found
            self._is_direct = True
        return next(self._batches)

    def _fetch(self) -> None:
        begun = time.perf_counter()
        try:
            while len(self._fetched) < self._most and not self._stop.is_set() and not self._is_enough(begun):
                since = time.perf_counter()
                batch = next(self._batches)
                now = time.perf_counter()
                self._rows = len(batch["sample_id"])
                self._fetched.append(Fetch(now, now - since))
                self._ready.put(batch)
                self._wait_for_room(sum(value.nbytes for value in batch.values()))
        except BaseException as error:  # raised where the batch would have been
            self._ready.put(error)
            return
        self._ready.put(None)

    def _is_enough(self, begun: float) -> bool:
        now = time.perf_counter()
        if not self._fetched:
            return False
        # Workers that start together deliver their first batches together: that wave says nothing about their rate.
        wave = min(self._fetched[0].wait, _LONGEST_WAVE)
        if now - self._fetched[0].end < max(self._seconds, wave):
            return False
        return batches_per_second(self._fetched) is not None or now - begun > _LONGEST

    def _wait_for_room(self, batch_bytes: int) -> None:
        while self._ready.qsize() * batch_bytes > _MOST_BYTES and not self._stop.is_set():
            self._is_at_least = True
            self._taken.clear()
            self._taken.wait(0.1)

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread, but do not wait long for its last batch: storage may not answer."""
        self._stop.set()
        self._thread.join(_END_SECONDS)


def batches_per_second(fetched: Sequence[Fetch]) -> float | None:
    """Rate at which batches were made; None if that cannot be seen yet.

    Several workers may deliver in bursts, so the rate is measured between two batches that had to be waited for. The
    first wait includes the start of the workers.

    >>> batches_per_second([Fetch(5.0, 5.0), Fetch(5.0, 0.0), Fetch(6.0, 1.0), Fetch(6.0, 0.0), Fetch(7.0, 1.0)])
    2.0
    """
    if len(fetched) < 2:
        return None
    mean = sum(one.wait for one in fetched[1:]) / len(fetched[1:])
    last = max(at for at, one in enumerate(fetched[1:], start=1) if one.wait >= mean / 2)
    return last / max(fetched[last].end - fetched[0].end, 1e-9)
