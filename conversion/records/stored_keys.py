"""Keys of the records of finished record folders: entries for sorting, records that share a key, and examples."""

import hashlib
import heapq
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np

from clipa_eqx.data.manifest import Manifest
from clipa_eqx.data.records import Record, decode_record, encode_record
from clipa_eqx.progress import progress_bar
from conversion.records.buckets import (
    PER_BUCKET,
    BucketFile,
    Items,
    count_buckets,
    read_items,
    slices_of_bucket,
    write_buckets,
)
from conversion.records.keys import (
    ENTRY,
    Entries,
    content_digest,
    key_digest,
    pack_entry,
    starts_of_keys,
)
from conversion.records.places import Place, open_place
from conversion.records.shards import Shard, local_shard, over_shards, read_blobs, shard_of

STORED = np.dtype([*((name, ENTRY[name]) for name in ENTRY.names or ()), ("extra", "<u8")])
"""Entry of a stored record: that of a row, whose part is the number of its shard, and 64 bits of a hash of `extra`."""


def read_entries(shard: Shard, seen: Callable[[int], None]) -> bytes:
    """The bytes of the entries of all records of a shard; ``seen`` is called with the bytes of each record.

    Raises:
        DataError: the shard is missing or damaged.
    """
    entries = bytearray()
    with local_shard(shard) as (path, where):
        for row, blob in enumerate(read_blobs(path, range(shard.info.count), where=where)):
            record = decode_record(blob, where=f"{where}, record {row}")
            content = content_digest(record, encoded=blob)
            entries += pack_entry(key_digest(record.key), content, part=shard.number, row=row)
            entries += _extra_digest(record)[:8]
            seen(len(blob))
    return bytes(entries)


def distribute_keys(
    place: Place, manifest: Manifest, *, folder: Place, name: str, buckets: int, workers: int
) -> list[BucketFile]:
    """Write the entries of all records of a folder to files of at least 2 million, the last one excepted.

    Args:
        folder: the folder to write to.
        name: start of the names of the files.

    Raises:
        DataError: a record cannot be read, a file cannot be written, or ``workers`` is less than 1.
    """
    files: list[BucketFile] = []
    held: list[Items] = []

    def write() -> None:
        files.append(write_buckets(folder, f"{name}-{len(files)}", np.concatenate(held), count=buckets))
        held.clear()

    for _, entries in over_shards(read_entries, place, manifest, workers=workers, what=f"read {place.url}"):
        held.append(np.frombuffer(entries, STORED))
        if sum(map(len, held)) >= PER_BUCKET:
            write()
    if held:
        write()
    return files


def describe_record(place: Place, manifest: Manifest, number: int, row: int) -> tuple[str, str]:
    """Key of a record, and its shard and position in words.

    Raises:
        DataError: the record cannot be read.
    """
    shard = shard_of(place, manifest, number)
    with local_shard(shard) as (path, where):
        (blob,) = read_blobs(path, [row], where=where)
    return decode_record(blob, where=where).key, f"{shard.info.name}, record {row}"


@dataclass(frozen=True, kw_only=True)
class RepeatedKeys:
    """Records of a folder whose key an earlier record has.

    Attributes:
        records: number of them.
        differing: those with other image, captions or label than the first record of that key.
        examples: the first few: key, place of the record, and place of the first record of that key.
    """

    records: int
    differing: int
    examples: tuple[str, ...]


class _Repeat(NamedTuple):
    """Places of a record and of the first one of its key."""

    shard: int
    row: int
    first_shard: int
    first_row: int


def find_repeated_keys(place: Place, manifest: Manifest, *, workers: int, examples: int) -> RepeatedKeys:
    """Look for keys that several records of a folder have.

    All records are read. A local temporary folder holds 40 bytes for each.

    Raises:
        DataError: a record cannot be read, or ``workers`` is less than 1.
    """
    records = differing = 0
    firsts: list[_Repeat] = []
    with tempfile.TemporaryDirectory(prefix="clipa_eqx-keys-") as name:
        folder, buckets = open_place(name), count_buckets(manifest.rows_written)
        files = distribute_keys(place, manifest, folder=folder, name="keys", buckets=buckets, workers=workers)
        for number in progress_bar(range(buckets), what="compare keys", total=buckets, unit="bucket"):
            found, others = _repeated(read_items(folder, slices_of_bucket(files, number), STORED))
            records += len(found)
            differing += others
            firsts = heapq.nsmallest(examples, [*firsts, *found])
    return RepeatedKeys(
        records=records,
        differing=differing,
        examples=tuple(_describe(place, manifest, repeat) for repeat in firsts),
    )


def _repeated(entries: Entries) -> tuple[list[_Repeat], int]:
    """Places of the entries whose key an earlier one has, and how many of them have other content than the first."""
    entries = entries[np.lexsort((entries["row"], entries["part"], entries["low"], entries["high"]))]
    is_first = starts_of_keys(entries)
    first = entries[is_first][np.cumsum(is_first) - 1]
    again = ~is_first
    places = (column[name][again].tolist() for column in (entries, first) for name in ("part", "row"))
    found = [_Repeat(*cast("tuple[int, int, int, int]", one)) for one in zip(*places, strict=True)]
    return found, int((entries["content"] != first["content"])[again].sum())


def _describe(place: Place, manifest: Manifest, repeat: _Repeat) -> str:
    key, where = describe_record(place, manifest, repeat.shard, repeat.row)
    _, first = describe_record(place, manifest, repeat.first_shard, repeat.first_row)
    return f"{key} ({where}; first in {first})"


def _extra_digest(record: Record) -> bytes:
    """SHA-256 of the values in ``extra``, in whatever order they are stored."""
    values = replace(record, key="", image=b"", captions=(), label=None, extra=dict(sorted(record.extra.items())))
    return hashlib.sha256(encode_record(values)).digest()
