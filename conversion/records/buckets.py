"""Entries of billions of rows, distributed to buckets by key: files of entries in the order of their buckets.

No bucket needs an open file. A bucket is read from its slice of each file, so one bucket at a time fits in memory.
"""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped

from clipa_eqx.errors import DataError
from conversion.records.places import Place

PER_BUCKET = 2**21  # rows that a bucket is meant to have
PER_FILE = 2**23  # rows that a file of entries is meant to have
_MOST_BUCKETS = 2**16  # numbers of 16 bits are sorted in linear time
_WRITTEN_AT_ONCE = 2**18  # entries
_READ_AT_ONCE = 2**20  # entries fetched together

Items = Shaped[np.ndarray, " items"]  # of one structured dtype


class Slice(NamedTuple):
    """Consecutive items of a file: from ``start`` up to and without ``stop``."""

    name: str
    start: int
    stop: int


class BucketFile(NamedTuple):
    """A file of items in the order of their buckets; those of a bucket keep their order.

    Attributes:
        name: the file, inside its folder.
        starts: position of the first item of each bucket, then the number of items.
    """

    name: str
    starts: Int64[np.ndarray, " borders"]


def count_buckets(rows: int, *, per_bucket: int = PER_BUCKET) -> int:
    """The number of buckets for so many rows; at most 65,536, so only beyond 137 billion rows they become larger."""
    return min(max(1, -(-rows // per_bucket)), _MOST_BUCKETS)


def slices_of_bucket(files: Iterable[BucketFile], number: int) -> tuple[Slice, ...]:
    """Where the items of a bucket are."""
    return tuple(Slice(file.name, int(file.starts[number]), int(file.starts[number + 1])) for file in files)


def unique_name(kind: str, number: int) -> str:
    """A name that no other attempt at the same task uses, so that a late one disturbs nobody."""
    return f"{kind}-{number:06d}-{uuid.uuid4().hex}"


def write_buckets(folder: Place, name: str, items: Items, *, count: int) -> BucketFile:
    """Write a file of items, sorted by bucket.

    Args:
        items: they have a field ``high``, 64 bits of a hash of the key, which decides the bucket.
        count: number of buckets.

    Raises:
        DataError: the file cannot be written.
    """
    # The upper half of the hash, as a fraction of 2^32, times the number of buckets.
    numbers = ((items["high"] >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)).astype(np.uint16)
    order = np.argsort(numbers, kind="stable")
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(numbers, minlength=count), out=starts[1:])
    write_items(
        folder, name, (items.take(order[i : i + _WRITTEN_AT_ONCE]) for i in range(0, len(order), _WRITTEN_AT_ONCE))
    )
    return BucketFile(name, starts)


def write_items(folder: Place, name: str, chunks: Iterable[Items]) -> None:
    """Write chunks of items to a new file, one after the other.

    Raises:
        DataError: the file cannot be written.
    """
    path = folder.child(name)
    try:
        with Path(path).open("wb") if folder.is_local else folder.fs.open(path, "wb") as file:
            for chunk in chunks:
                file.write(chunk.view(np.uint8).data)
    except OSError as error:
        raise DataError(
            f"keys cannot be written to {folder.url}: {error}; make space there (TMPDIR chooses another local folder) "
            "and repeat the same command to resume"
        ) from error


def read_items(folder: Place, slices: Iterable[Slice], dtype: np.dtype[np.void]) -> Items:
    """The items of slices, one after the other. Remote slices are fetched concurrently.

    Raises:
        DataError: a file cannot be read, or has fewer items.
    """
    slices = list(slices)
    items = np.empty(sum(one.stop - one.start for one in slices), dtype)
    done = 0
    for some in cut(slices, _READ_AT_ONCE):
        try:
            contents = _read_ranges(folder, some, dtype.itemsize)
        except OSError as error:
            raise DataError(
                f"keys in {folder.url} cannot be read: {error}; repeat the same command to resume"
            ) from error
        for one, content in zip(some, contents, strict=True):
            found = np.frombuffer(content, dtype, len(content) // dtype.itemsize)
            if len(found) != one.stop - one.start:
                raise DataError(
                    f"{folder.url}/{one.name} has fewer than {one.stop:,} entries; did another program write to it? "
                    "Repeat the same command to resume"
                )
            items[done : done + len(found)] = found
            done += len(found)
    return items


def cut(slices: Iterable[Slice], most: int) -> Iterator[list[Slice]]:
    """Divide slices, in their order, into lists of ``most`` items; the last list may have fewer."""
    held: list[Slice] = []
    room = most
    for name, start, end in slices:
        while start < end:
            stop = min(end, start + room)
            held.append(Slice(name, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield held
                held, room = [], most
    if held:
        yield held


def remove_files(folder: Place, names: Sequence[str]) -> None:
    """Remove files that are not needed any more."""
    if folder.is_local:
        for name in names:
            Path(folder.child(name)).unlink(missing_ok=True)
    elif names:
        folder.fs.rm([folder.child(name) for name in names])


def _read_ranges(folder: Place, slices: Sequence[Slice], size: int) -> list[bytes]:
    paths = [folder.child(one.name) for one in slices]
    starts, stops = [one.start * size for one in slices], [one.stop * size for one in slices]
    if not folder.is_local:
        return folder.fs.cat_ranges(paths, starts, stops, on_error="raise")
    contents: list[bytes] = []
    for path, start, stop in zip(paths, starts, stops, strict=True):
        with Path(path).open("rb", buffering=0) as file:
            file.seek(start)
            contents.append(file.read(stop - start))
    return contents
