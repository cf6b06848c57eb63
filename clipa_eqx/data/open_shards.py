"""Open shards of record folders: those read most recently stay open, within bounds on memory and open files."""

import errno
import itertools
import os
import resource
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from clipa_eqx.data.addresses import ShardAddresses, is_url
from clipa_eqx.data.array_record_files import ShardReader, open_reader
from clipa_eqx.data.bucket_shards import INDEX_BYTES, BucketShard, begin_open
from clipa_eqx.data.shard_checks import check_size
from clipa_eqx.data.shards import ShardInfo, shard_table
from clipa_eqx.errors import DataError

_LOCAL_INDEX_BYTES = 16
MOST_OPEN_RECORDS = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 64 // _LOCAL_INDEX_BYTES
"""Records in all open shards of a process; four in a bucket count as one. Their index of 8 to 16 bytes each, or 4 in a
bucket, takes at most 1/64 of the memory."""


class OpenShards:
    """Readers of the shards of one record folder, opened on demand. Threads may share one.

    The readers used most recently stay open, over all record folders of the process: as many as have indices of at
    most 1/64 of the machine's memory and, on local disks, take at most a quarter of the files that the process may
    open. Opening a shard of 10,000 records again takes 0.4 ms if it is in the page cache.
    """

    def __init__(self, folder: str, shards: Sequence[ShardInfo]) -> None:
        self._shards = shard_table(shards)
        self.addresses: ShardAddresses = ShardAddresses(folder, self._shards)
        """Paths or URLs of the shards."""
        self._is_remote = tuple(map(is_url, self.addresses.folders))
        self._open_readers = _OpenReaders(weights=self._weights(), is_local=not all(self._is_remote))
        with _lock:
            _all.add(self._open_readers)

    def reader(self, shard: int) -> ShardReader:
        """Return the reader of a shard; open it if it is not open.

        Raises:
            DataError: the shard is missing, cannot be opened, or is not the one that the manifest describes.
        """
        if (reader := self._find(shard)) is not None:
            return reader
        # Outside of the lock, so that threads open several at once.
        if self._is_in_bucket(shard):
            return self._add(shard, self._begin_open(shard)())
        try:
            reader = self._open(shard)
        except DataError:
            # Retry after closing half of the open files: the limit may have been reached, which array_record does not
            # report.
            with _lock:
                folders = list(_all)
                _drop_oldest(folders, _count(folders) // 2)
            reader = self._open(shard)
        return self._add(shard, reader)

    def begin(
        self, wanted: Mapping[int, Sequence[int]], *, waits: Callable[[int], object]
    ) -> dict[int, Callable[[], Sequence[bytes]]]:
        """Ask for records of all shards that are in buckets, together, because each answer takes a while.

        Args:
            wanted: positions of records by shard.
            waits: called with a shard before its index is waited for.

        Returns:
            For each shard in a bucket, the function that waits for its records and returns them.

        Raises:
            DataError: as ``reader``.
        """
        readers: dict[int, ShardReader] = {}
        opening: dict[int, Callable[[], ShardReader]] = {}
        for shard in wanted if any(self._is_remote) else ():
            if self._is_in_bucket(shard):
                if (reader := self._find(shard)) is None:
                    opening[shard] = self._begin_open(shard)
                else:
                    readers[shard] = reader
        for shard, finish in opening.items():
            waits(shard)
            readers[shard] = self._add(shard, finish())
        return {
            shard: reader.begin(positions) if isinstance(reader, BucketShard) else partial(reader.read, positions)
            for shard, positions in wanted.items()
            if (reader := readers.get(shard)) is not None
        }

    def close(self) -> None:
        """Close all shards of this folder; the next call of ``reader`` opens them again."""
        with _lock:
            self._open_readers.close()

    def _is_in_bucket(self, shard: int) -> bool:
        return self._is_remote[self._shards.file(shard)[0]]

    def _weights(self) -> Int64[np.ndarray, " shards"]:
        """Size of the index of each shard, in records of a local one."""
        bounds = (*self._shards.firsts, len(self._shards))
        is_remote = np.repeat(self._is_remote, np.diff(bounds))
        counts = self._shards.counts
        return np.where(is_remote, -(-counts * INDEX_BYTES // _LOCAL_INDEX_BYTES), counts)

    def _find(self, shard: int) -> ShardReader | None:
        with _lock:
            return self._open_readers.find(shard)

    def _add(self, shard: int, reader: ShardReader) -> ShardReader:
        with _lock:
            self._open_readers.add(shard, reader)
            _keep_to_bounds()
        return reader

    def _begin_open(self, shard: int) -> Callable[[], ShardReader]:
        """Ask for the index of a shard in a bucket, and return the function that waits for it and opens the shard."""
        url, expected = self.addresses[shard], int(self._shards.counts[shard])
        finish = begin_open(url, size=int(self._shards.sizes[shard]), count=expected)

        def opened() -> ShardReader:
            reader = finish()
            if (count := reader.num_records()) != expected:
                raise DataError(f"shard {url} has {count} records, its manifest says {expected}; restore it")
            return reader

        return opened

    def _open(self, shard: int) -> ShardReader:
        path, expected = self.addresses[shard], int(self._shards.counts[shard])
        check_size(path, expected=int(self._shards.sizes[shard]))
        # A truncated file may open without an error and report 0 records, so the count is compared here.
        try:
            reader = open_reader(path)
            count = reader.num_records()
        except RuntimeError as error:
            _check_readable(path)
            raise DataError(f"shard {path} is damaged: {error}; restore it from its source") from error
        if count != expected:
            _check_readable(path)
            raise DataError(f"shard {path} has {count} records, its manifest says {expected}; restore it")
        return reader


def _check_readable(path: str) -> None:
    """Raise DataError if the system does not open the file; array_record reports such a file as an empty one."""
    try:
        Path(path).open("rb").close()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            advice = f"this process may have {limit} files open; raise that with `ulimit -n`"
        else:
            advice = "make it readable for this user"
        raise DataError(f"shard {path} cannot be opened: {error.strerror}; {advice}") from error


class _OpenReader(NamedTuple):
    reader: ShardReader
    used: int  # time of the last use, by _clock


@dataclass(eq=False, kw_only=True)
class _OpenReaders:
    """Open shards of one folder; all methods need the lock."""

    weights: Int64[np.ndarray, " shards"]  # size of the index of each shard, open or not
    is_local: bool
    readers: OrderedDict[int, _OpenReader] = field(default_factory=OrderedDict[int, _OpenReader])  # least recent first
    records: int = 0  # the weights of the open shards

    def find(self, shard: int) -> ShardReader | None:
        if shard not in self.readers:
            return None
        self.readers[shard] = self.readers[shard]._replace(used=next(_clock))
        self.readers.move_to_end(shard)
        return self.readers[shard].reader

    def add(self, shard: int, reader: ShardReader) -> None:
        if self.find(shard) is None:  # otherwise another thread was faster
            self.readers[shard] = _OpenReader(reader, next(_clock))
            self.records += int(self.weights[shard])

    def oldest(self) -> int:
        return next(iter(self.readers.values())).used

    def drop_oldest(self) -> None:
        # Released, not closed, because another thread may be reading from it. Its destructor closes the file.
        shard, _ = self.readers.popitem(last=False)
        self.records -= int(self.weights[shard])

    def close(self) -> None:
        for opened in self.readers.values():
            opened.reader.close()
        self.readers.clear()
        self.records = 0


# The bounds apply to the process, over all record folders. A folder that is no longer referenced leaves the set.
_all: weakref.WeakSet[_OpenReaders] = weakref.WeakSet()
_lock = threading.Lock()
_clock = itertools.count()


def _keep_to_bounds() -> None:
    folders = list(_all)  # references, so that none is collected meanwhile
    local = [folder for folder in folders if folder.is_local]
    _drop_oldest(local, _count(local) - _allowed_files(sum(len(folder.weights) for folder in local)))
    while _count(folders) > 1 and sum(folder.records for folder in folders) > MOST_OPEN_RECORDS:
        _drop_oldest(folders, 1)


def _count(folders: Sequence[_OpenReaders]) -> int:
    return sum(len(folder.readers) for folder in folders)


def _drop_oldest(folders: Sequence[_OpenReaders], number: int) -> None:
    """Release the ``number`` readers of these folders that were used least recently."""
    for _ in range(number):
        min((folder for folder in folders if folder.readers), key=_OpenReaders.oldest).drop_oldest()


def _allowed_files(shards: int) -> int:
    """Number of shards that may be open at once: a quarter of this process's limit of open files.

    The limit is raised first, as far as ``shards`` need it and the system allows it. The other three quarters are for
    everything else that the process opens.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * shards + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return shards if soft == resource.RLIM_INFINITY else max(1, soft // 4)
