"""Readers and writers of single ArrayRecord files: the one place that opens array_record's compiled module."""

import importlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

# group_size:1 makes one record one read. Images are compressed already, so a second compression would only cost time.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0"


@runtime_checkable
class ShardReader(Protocol):
    """Random access to the records of an open shard; several threads may share one. All methods raise RuntimeError."""

    def read(self, positions: Sequence[int], /) -> Sequence[bytes]:
        """Records at these positions, in this order."""
        ...

    def num_records(self) -> int:
        """Number of records; a truncated file may report 0 instead of an error."""
        ...

    def ok(self) -> bool:
        """Check whether the file has a valid index, which an empty file of records has too."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


@runtime_checkable
class ShardWriter(Protocol):
    """Sequential writer of a shard. Both methods raise RuntimeError; most problems show in ``close``."""

    def write(self, record: bytes, /) -> None:
        """Append a record."""
        ...

    def close(self) -> None:
        """Write the index and close the file."""
        ...


def open_reader(path: str) -> ShardReader:
    """Open a shard by its local path or ``gs://`` URL.

    Raises:
        RuntimeError: the file cannot be read as ArrayRecord. Other causes, such as a limit of open files, look like an
            empty file instead.
    """
    return _module().ArrayRecordReader(path, options=_READER_OPTIONS)


def open_writer(path: str) -> ShardWriter:
    """Create a shard at a local path.

    Raises:
        RuntimeError: the file cannot be created.
    """
    return _module().ArrayRecordWriter(path, _WRITER_OPTIONS)


def _module() -> Any:
    # A compiled module without type stubs, hence imported by name; on first use, because it takes a while.
    return importlib.import_module("array_record.python.array_record_module")
