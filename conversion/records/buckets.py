"""Entries of billions of rows, distributed to buckets by key: files of entries in the order of their buckets.

No bucket needs an open file. A bucket is read from its slice of each file, so one bucket at a time fits in memory.
"""

import itertools
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
_AT_ONCE = 2**18  # items of a step
_READ_AT_ONCE = 2**20  # items fetched together

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
    """The items of a bucket."""
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
    pieces = [slice(i, i + _AT_ONCE) for i in range(0, len(items), _AT_ONCE)]
    numbers = np.empty(len(items), np.uint16)
    for piece in pieces:  # the upper half of the hash, as a fraction of 2^32, times the number of buckets
        numbers[piece] = (items["high"][piece] >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)
    order = np.argsort(numbers, kind="stable")
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(numbers, minlength=count), out=starts[1:])
    write_items(folder, name, (items.take(order[piece]) for piece in pieces))
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
    size = dtype.itemsize
    items = np.empty(sum(one.stop - one.start for one in slices), dtype)
    space = items.view(np.uint8).data
    for some in cut(slices, _READ_AT_ONCE):
        counts = [size * (one.stop - one.start) for one in some]
        ends = list(itertools.accumulate(counts, initial=0))
        spaces = [space[start:end] for start, end in itertools.pairwise(ends)]
        space = space[ends[-1] :]
        try:
            found = _read_into(folder, some, size, spaces)
        except OSError as error:
            raise DataError(
                f"keys in {folder.url} cannot be read: {error}; repeat the same command to resume"
            ) from error
        for one, wanted, read in zip(some, counts, found, strict=True):
            if read != wanted:
                raise DataError(
                    f"{folder.url}/{one.name} has fewer than {one.stop:,} entries; did another program write to it? "
                    "Repeat the same command to resume"
                )
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


def _read_into(folder: Place, slices: Sequence[Slice], size: int, spaces: Sequence[memoryview]) -> list[int]:
    """Read each slice of items of ``size`` bytes into its space; return the numbers of bytes that were there."""
    paths, starts = [folder.child(one.name) for one in slices], [one.start * size for one in slices]
    if not folder.is_local:
        ends = [one.stop * size for one in slices]
        contents: list[bytes] = folder.fs.cat_ranges(paths, starts, ends, on_error="raise")
        for space, content in zip(spaces, contents, strict=True):
            space[: len(content)] = content
        return list(map(len, contents))
    counts: list[int] = []
    for path, start, space in zip(paths, starts, spaces, strict=True):
        with Path(path).open("rb") as file:
            file.seek(start)
            counts.append(file.readinto(space))
    return counts
