"""Shards in Google's storage, read in exact ranges of bytes by TensorStore: one request for a shard, one for a record.

array_record opens ``gs://`` addresses itself, but asks for everything from a record to the end of the file, on a new
connection each time, and then closes it. TensorStore keeps its connections, sends requests together and repeats them.
"""

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from clipa_eqx.buckets.array_store import array_store
from clipa_eqx.buckets.bucket import Bucket
from clipa_eqx.data.array_record_files import ShardReader, open_reader
from clipa_eqx.data.array_record_layout import (
    BLOCK,
    END,
    Footer,
    LayoutError,
    OtherLayoutError,
    footer_start,
    parse_footer,
    parse_record,
)
from clipa_eqx.errors import DataError

INDEX_BYTES = 4
"""Bytes that the index of an open shard below 4 GB takes for each record."""

_REQUESTS = 256  # at once, in a process
_MOST_AT_ONCE = 2**24  # bytes of neighboring records in one request


class BucketShard:
    """Records of an open shard in a bucket. Threads may share one.

    Reading raises ``DataError`` if the bucket does not answer, and ``RuntimeError`` for a damaged record.
    """

    def __init__(self, url: str, footer: Footer, generation: object) -> None:
        self._url, self._footer, self._generation = url, footer, generation

    def num_records(self) -> int:
        """Number of records."""
        return len(self._footer.starts)

    def ok(self) -> bool:
        """True: a shard without an index is not opened."""
        return True

    def close(self) -> None:
        """Do nothing: connections are those of the process."""

    def read(self, positions: Sequence[int]) -> list[bytes]:
        """Records at these positions, in this order."""
        return self.begin(positions)()

    def begin(self, positions: Sequence[int]) -> Callable[[], list[bytes]]:
        """Ask for records, and return the function that waits for them. Neighbors share a request."""
        begun = [(run, self._ask(run)) for run in self._runs(positions)]

        def finish() -> list[bytes]:
            return [record for run, ask in begun for record in self._records_of(run, ask())]

        return finish

    def _runs(self, positions: Sequence[int]) -> list[range]:
        """Positions as ranges of neighbors, none of which has very many bytes."""
        runs: list[range] = []
        for position in positions:
            if not 0 <= position < self.num_records():
                raise IndexError(f"record {position} of {self._url}: there are {self.num_records()} records")
            last = runs[-1] if runs else range(0)
            if last.stop == position and last and self._end(position) - self._start(last.start) <= _MOST_AT_ONCE:
                runs[-1] = range(last.start, position + 1)
            else:
                runs.append(range(position, position + 1))
        return runs

    def _ask(self, run: range) -> Callable[[], tuple[bytes, object]]:
        return _begin_read(self._url, self._start(run.start), self._end(run.stop - 1))

    def _records_of(self, run: range, answer: tuple[bytes, object]) -> list[bytes]:
        content, generation = answer
        if generation != self._generation:
            raise DataError(f"shard {self._url} was replaced while it was open; start again")
        first = self._start(run.start)
        return [parse_record(content[self._start(i) - first : self._end(i) - first], self._start(i)) for i in run]

    def _start(self, position: int) -> int:
        return int(self._footer.starts[position])

    def _end(self, position: int) -> int:
        return self._start(position + 1) if position + 1 < self.num_records() else self._footer.end


def begin_open(url: str, *, size: int, count: int) -> Callable[[], ShardReader]:
    """Ask for the index of a shard, and return the function that waits for it and opens the shard.

    A shard of another layout than ours is opened by array_record.

    Args:
        url: a ``gs://`` address.
        size: bytes of the shard, by its manifest.
        count: records of the shard, by its manifest.

    Raises:
        DataError: the size is none that a shard has. The function that is returned raises it if the shard is missing or
            damaged, or the bucket does not answer.
    """
    if size < BLOCK:
        raise DataError(f"shard {url} has {size} bytes by its manifest; no shard has fewer than {BLOCK}")
    # The footer, the space after it up to a multiple of BLOCK, and what is used of the last BLOCK.
    end = size - BLOCK + END
    start = max(size - 2 * BLOCK - 1024 - count * _entry_bytes(size, count), 0)
    ask = _begin_read(url, start, end)

    def finish() -> ShardReader:
        tail, generation = ask()
        try:
            at = footer_start(tail[-END:], size)
            if at < start:  # entries are longer than expected
                tail, generation = _begin_read(url, at, end)()
            return BucketShard(url, parse_footer(tail[max(at - start, 0) : len(tail) - END], at), generation)
        except OtherLayoutError:
            return open_reader(url)
        except LayoutError as error:
            raise DataError(
                f"shard {url} is damaged, or does not have the {size} bytes of its manifest: {error}; restore it"
            ) from error

    return finish


def _entry_bytes(size: int, count: int) -> int:
    """Bytes that the footer has for a record: five, its position, and its size, in groups of seven bits."""
    return 5 + -(-size.bit_length() // 7) + -(-(16 * size // max(count, 1)).bit_length() // 7)


def _begin_read(url: str, start: int, end: int) -> Callable[[], tuple[bytes, object]]:
    """Ask for a range of bytes, and return the function that waits for them and for the version of the file.

    That function raises DataError if the file or the range is missing, or the bucket does not answer.
    """
    bucket, _, name = url.removeprefix("gs://").partition("/")
    store, limit = _store(bucket, os.environ.get("STORAGE_EMULATOR_HOST"))
    future = store.read(name, byte_range=slice(start, end))

    def finish() -> tuple[bytes, object]:
        try:
            found = future.result(timeout=limit(end - start))
        # TensorStore has one kind of error for all causes.
        except (ValueError, TimeoutError, OSError) as error:
            text = " ".join(str(error).split())[:300] or "no answer"
            raise DataError(f"shard {url} cannot be read: {text}; check the bucket and its credentials") from error
        if found.state != "value":
            raise DataError(f"shard {url} is missing; restore it or convert the data again")
        if len(found.value) != end - start:
            raise DataError(f"shard {url} ends at byte {start + len(found.value)}, expected {end}; restore it")
        return bytes(found.value), found.stamp.generation

    return finish


@functools.cache
def _store(bucket: str, emulator: str | None) -> tuple[Any, Callable[[int], float | None]]:
    """TensorStore's view of a bucket in this process, and the seconds that a request of so many bytes may take.

    ``emulator`` is the address of a server that takes the place of Google's; there is one view for each.
    """
    tensorstore = importlib.import_module("tensorstore")  # on first use, because it takes a while
    found = array_store(Bucket("gs", bucket, ""), "")
    context = tensorstore.Context({"gcs_request_concurrency": {"limit": _REQUESTS}, **found.context})
    return tensorstore.KvStore.open(found.kvstore, context=context).result(), found.limit
