"""Open the ArrayRecord files of folders, and keep those open that were read last."""

import errno
import importlib
import itertools
import os
import re
import resource
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from clipa_eqx.data.manifest import ShardInfo
from clipa_eqx.errors import DataError

# The index of an open shard takes 8 to 16 bytes per record: in each process up to 1/64 of the machine's memory.
_MOST_OPEN_RECORDS = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 64 // 16


class OpenShards:
    """Readers of shards, made when asked for. Threads may share one.

    Of all readers of the process, those used last stay open: as many as have indices of at most 1/64 of the machine's
    memory and, on local disks, take a quarter of the files that the process may open. Opening one again takes 0.4 ms
    for a shard of 10,000 records in the page cache.
    """

    def __init__(self, folder: str, shards: Sequence[ShardInfo]) -> None:
        self._folder, self._shards = folder, shards
        self._kept = _Kept(counts=tuple(shard.count for shard in shards), is_local=not is_url(folder))
        with _lock:
            _all.add(self._kept)

    def reader(self, shard: int) -> Any:
        """The ArrayRecord reader of a shard.

        Raises:
            DataError: the shard is missing, cannot be opened, or is not the one that the manifest describes.
        """
        with _lock:
            if (reader := self._kept.find(shard)) is not None:
                return reader
        # Outside of the lock, so that threads open several at once.
        try:
            reader = self._open(shard)
        except DataError:
            # Once more with half of the files, in case it was for want of one: array_record does not tell that.
            with _lock:
                sets = list(_all)
                _drop_oldest(sets, _count(sets) // 2)
            reader = self._open(shard)
        with _lock:
            self._kept.add(shard, reader)
            _keep_to_bounds()
        return reader

    def close(self) -> None:
        """Close all of this set; the next `reader` opens again."""
        with _lock:
            self._kept.close()

    def _open(self, shard: int) -> Any:
        # A compiled module without type stubs, hence by name.
        array_record = importlib.import_module("array_record.python.array_record_module")

        info = self._shards[shard]
        path = f"{self._folder}/{info.name}"
        if not is_url(self._folder):
            check_size(Path(path), expected=info.bytes)
        # A cut file can open without an error and claim to hold nothing, so the count is compared here.
        try:
            reader = array_record.ArrayRecordReader(path, options="readahead_buffer_size:0")
            count: int = reader.num_records()
        except RuntimeError as error:
            self._check_readable(path)
            raise DataError(f"shard {path} is damaged: {error}; restore it from its source") from error
        if count != info.count:
            self._check_readable(path)
            raise DataError(f"shard {path} holds {count} records, its manifest says {info.count}; restore it")
        return reader

    def _check_readable(self, path: str) -> None:
        """Raise for a file that the system does not open, which to array_record is one without records."""
        if is_url(self._folder):
            return
        try:
            Path(path).open("rb").close()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
                advice = f"this process may have {limit} files open; raise that with `ulimit -n`"
            else:
                advice = "make it readable for this user"
            raise DataError(f"shard {path} cannot be opened: {error.strerror}; {advice}") from error


def is_url(folder: str | Path) -> bool:
    """Whether a folder lies in a bucket. DataError for a `Path` made of a URL, which has lost a slash."""
    text = str(folder)
    if re.match(r"[A-Za-z0-9+.-]+:/(?!/)", text):
        raise DataError(f"data folder {text} looks like a URL with one slash; give it as text, not as a Path")
    return "://" in text


def check_size(path: Path, *, expected: int) -> None:
    """Raises DataError for a shard that is missing or has another size."""
    if not path.is_file():
        raise DataError(f"shard {path} is missing; restore it or convert the data again")
    size = path.stat().st_size
    if size != expected:
        raise DataError(
            f"shard {path} has {size} bytes, its manifest says {expected}: it is cut or changed; restore it"
        )


class _Open(NamedTuple):
    reader: Any
    used: int  # when, by _clock


@dataclass(eq=False, kw_only=True)
class _Kept:
    """The open shards of a set; call it with the lock held."""

    counts: tuple[int, ...]  # records of each shard, open or not
    is_local: bool
    readers: OrderedDict[int, _Open] = field(default_factory=OrderedDict[int, _Open])  # the one used last is the last
    records: int = 0

    def find(self, shard: int) -> Any:
        if shard not in self.readers:
            return None
        self.readers[shard] = self.readers[shard]._replace(used=next(_clock))
        self.readers.move_to_end(shard)
        return self.readers[shard].reader

    def add(self, shard: int, reader: Any) -> None:
        if self.find(shard) is None:  # else another thread was quicker
            self.readers[shard] = _Open(reader, next(_clock))
            self.records += self.counts[shard]

    def oldest(self) -> int:
        return next(iter(self.readers.values())).used

    def drop_oldest(self) -> None:
        # Let go, not closed, because another thread may be reading from it. Its end closes the file.
        shard, _ = self.readers.popitem(last=False)
        self.records -= self.counts[shard]

    def close(self) -> None:
        for one in self.readers.values():
            one.reader.close()
        self.readers.clear()
        self.records = 0


# The bounds are on the process, over all its sets. A set that nobody holds any more leaves by itself.
_all: weakref.WeakSet[_Kept] = weakref.WeakSet()
_lock = threading.Lock()
_clock = itertools.count()


def _keep_to_bounds() -> None:
    sets = list(_all)  # none of them ends meanwhile
    local = [one for one in sets if one.is_local]
    _drop_oldest(local, _count(local) - _allowed_files(sum(len(one.counts) for one in local)))
    while _count(sets) > 1 and sum(one.records for one in sets) > _MOST_OPEN_RECORDS:
        _drop_oldest(sets, 1)


def _count(sets: Sequence[_Kept]) -> int:
    return sum(len(one.readers) for one in sets)


def _drop_oldest(sets: Sequence[_Kept], number: int) -> None:
    """Drop this many readers of all these sets, those used longest ago."""
    for _ in range(number):
        min((one for one in sets if one.readers), key=_Kept.oldest).drop_oldest()


def _allowed_files(shards: int) -> int:
    """How many shards may be open at once, after raising this process's limit of open files as far as it helps.

    A quarter of that limit: others need files too, and a mixture has several sources.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * shards + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return shards if soft == resource.RLIM_INFINITY else max(1, soft // 4)
