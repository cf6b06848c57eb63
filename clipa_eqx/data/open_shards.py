"""Open the ArrayRecord files of a folder, and keep those open that were read last."""

import errno
import importlib
import re
import resource
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipa_eqx.data.manifest import ShardInfo
from clipa_eqx.errors import DataError

# The index of an open shard takes 8 to 16 bytes per record: up to half a gigabyte in each process.
_MOST_OPEN_RECORDS = 2**25


class OpenShards:
    """Readers of shards, made when asked for. Threads may share one.

    The readers used last stay open, as many as hold 2^25 records and take a quarter of the files that the process may
    open. Opening one again costs half a millisecond per 10,000 records.
    """

    def __init__(self, folder: str, shards: Sequence[ShardInfo]) -> None:
        self._folder, self._shards = folder, shards
        self._readers: OrderedDict[int, Any] = OrderedDict()  # the one used last is the last
        self._records = 0
        self._lock = threading.Lock()

    def reader(self, shard: int) -> Any:
        """The ArrayRecord reader of a shard.

        Raises:
            DataError: the shard is missing, cannot be opened, or is not the one that the manifest describes.
        """
        with self._lock:
            if shard in self._readers:
                self._readers.move_to_end(shard)
                return self._readers[shard]
        reader = self._open(shard)  # outside of the lock, so that threads open several at once
        most = len(self._shards) if is_url(self._folder) else _allowed_files(len(self._shards))
        with self._lock:
            if shard not in self._readers:
                self._readers[shard] = reader
                self._records += self._shards[shard].count
            while len(self._readers) > 1 and (len(self._readers) > most or self._records > _MOST_OPEN_RECORDS):
                # Let go, not closed, because another thread may be reading from it. Its end closes the file.
                gone, _ = self._readers.popitem(last=False)
                self._records -= self._shards[gone].count
        return reader

    def close(self) -> None:
        """Close all; the next `reader` opens again."""
        with self._lock:
            for reader in self._readers.values():
                reader.close()
            self._readers.clear()
            self._records = 0

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
