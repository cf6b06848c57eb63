"""Comparison of two record folders in bounded memory: keys they do not share, and keys with different samples."""

import contextlib
import hashlib
import heapq
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from clipa_eqx.data.manifest import Manifest
from clipa_eqx.data.records import Record, decode_record, encode_record
from conversion.records.buckets import (
    PER_BUCKET,
    BucketFile,
    Slice,
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
from conversion.records.manifests import read_manifest_of
from conversion.records.places import Place, open_place
from conversion.records.reading import local_copy
from conversion.records.shards import Shard, over_shards, read_blobs
from conversion.records.workers import Progress, run_jobs

_ENTRY = np.dtype([*((name, ENTRY[name]) for name in ENTRY.names or ()), ("extra", "<u8")])


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Numbers of keys of two folders A and B, each key counted once.

    Attributes:
        shared: keys in both.
        changed: shared keys under which image, captions or label differ.
        changed_extra: other shared keys under which ``extra`` differs.
        only_a: keys only in A.
        only_b: keys only in B.
        repeats_a: further records of A under a key that an earlier record has.
        repeats_b: the same of B.
        examples_changed: keys with their shard and record in A.
        examples_extra: keys with their shard and record in A.
        examples_a: keys with their shard and record in A.
        examples_b: keys with their shard and record in B.
    """

    shared: int
    changed: int
    changed_extra: int
    only_a: int
    only_b: int
    repeats_a: int
    repeats_b: int
    examples_changed: tuple[str, ...]
    examples_extra: tuple[str, ...]
    examples_a: tuple[str, ...]
    examples_b: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        """Check whether both folders hold the same samples under the same keys, each once."""
        return not any((self.changed, self.changed_extra, self.only_a, self.only_b, self.repeats_a, self.repeats_b))


def diff(a: str, b: str, *, workers: int = 1, examples: int = 10) -> Difference:
    """Compare the keys of two record folders, and the content under each.

    All records of both are read. A local temporary folder holds 40 bytes for each.

    Raises:
        DataError: a folder or its manifest is missing, or a record cannot be read.
    """
    places = (open_place(a), open_place(b))
    manifests = (read_manifest_of(places[0]), read_manifest_of(places[1]))
    counts = np.zeros(7, np.int64)
    firsts = tuple(_Firsts(examples) for _ in range(4))
    with tempfile.TemporaryDirectory(prefix="clipa_eqx-diff-") as name:
        folder = open_place(name)
        rows = max(manifest.rows_written for manifest in manifests)
        buckets = count_buckets(rows)
        sides = [
            _distribute(place, manifest, folder=folder, side=side, buckets=buckets, workers=workers)
            for side, place, manifest in zip("ab", places, manifests, strict=True)
        ]
        slices = ((slices_of_bucket(sides[0], i), slices_of_bucket(sides[1], i)) for i in range(buckets))
        jobs = (_Bucket(name, a, b, examples) for a, b in slices)
        progress = Progress(total=buckets, unit="bucket", what="compare keys")
        with contextlib.closing(progress):
            for _, found in run_jobs(_compare_bucket, jobs, workers=min(workers, buckets), progress=progress):
                counts += found.counts
                for first, positions in zip(firsts, found.firsts, strict=True):
                    first.add(positions)
                progress.finish(1)
    shared, changed, changed_extra, only_a, only_b, repeats_a, repeats_b = (int(count) for count in counts)
    return Difference(
        shared=shared,
        changed=changed,
        changed_extra=changed_extra,
        only_a=only_a,
        only_b=only_b,
        repeats_a=repeats_a,
        repeats_b=repeats_b,
        examples_changed=firsts[0].describe(places[0], manifests[0]),
        examples_extra=firsts[1].describe(places[0], manifests[0]),
        examples_a=firsts[2].describe(places[0], manifests[0]),
        examples_b=firsts[3].describe(places[1], manifests[1]),
    )


class _Firsts:
    """The positions (shard, record) of the first few of any number of entries."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._found: list[tuple[int, int]] = []

    def add(self, positions: Iterable[tuple[int, int]]) -> None:
        """Consider positions, in any order."""
        self._found = heapq.nsmallest(self._count, [*self._found, *positions])

    def describe(self, place: Place, manifest: Manifest) -> tuple[str, ...]:
        """Read the records at the positions; return their keys with shard and position."""
        names: list[str] = []
        for shard, position in self._found:
            info = manifest.shards[shard]
            where = f"{place.url}/{info.name}"
            with local_copy(place.fs, place.child(info.name)) as path:
                (blob,) = read_blobs(path, [position], where=where)
            names.append(f"{decode_record(blob, where=where).key} ({info.name}, record {position})")
        return tuple(names)


class _Bucket(NamedTuple):
    """A bucket to compare: its slices of the files of both sides.

    Attributes:
        folder: the folder with the files.
        a: slices of A.
        b: slices of B.
        examples: number of positions to return for each kind of difference.
    """

    folder: str
    a: tuple[Slice, ...]
    b: tuple[Slice, ...]
    examples: int


class _Found(NamedTuple):
    """Differences in a bucket.

    Attributes:
        counts: numbers in the order of ``Difference``.
        firsts: positions (shard, record) of examples in the order of ``Difference``.
    """

    counts: Int64[np.ndarray, "7"]
    firsts: list[list[tuple[int, int]]]


def _distribute(
    place: Place, manifest: Manifest, *, folder: Place, side: str, buckets: int, workers: int
) -> list[BucketFile]:
    """The entries of all records of a folder, in files of at least 2 million, the last one excepted."""
    files: list[BucketFile] = []
    held: list[Entries] = []

    def write() -> None:
        name = f"{side}-{len(files)}"
        files.append(write_buckets(folder, name, np.concatenate(held), count=buckets))
        held.clear()

    for _, entries in over_shards(_read_keys, place, manifest, workers=workers, what=f"read {place.url}"):
        held.append(np.frombuffer(entries, _ENTRY))
        if sum(map(len, held)) >= PER_BUCKET:
            write()
    if held:
        write()
    return files


def _compare_bucket(bucket: _Bucket, seen: Callable[[int], None]) -> _Found:
    del seen  # progress is in buckets
    folder = open_place(bucket.folder)
    a, b = (read_items(folder, slices, _ENTRY) for slices in (bucket.a, bucket.b))
    is_b = np.arange(len(a) + len(b)) >= len(a)
    both = np.concatenate([a, b])
    position = both["part"].astype(np.uint64) << np.uint64(32) | both["row"]
    order = np.lexsort((position, is_b, both["low"], both["high"]))
    both, is_b = both.take(order), is_b[order]
    starts = starts_of_keys(both)
    key = np.cumsum(starts) - 1  # number of each entry's key
    keys = int(starts.sum())
    leads = starts.copy()  # the first entry of each key on each side
    leads[1:] |= is_b[1:] != is_b[:-1]
    has, content, extra = np.zeros((2, keys), bool), np.zeros((2, keys), np.uint64), np.zeros((2, keys), np.uint64)
    for number, side in enumerate((~is_b, is_b)):
        has[number, key[leads & side]] = True
        content[number, key[leads & side]] = both["content"][leads & side]
        extra[number, key[leads & side]] = both["extra"][leads & side]
    shared, only_a, only_b = has[0] & has[1], has[0] & ~has[1], has[1] & ~has[0]
    changed = shared & (content[0] != content[1])
    changed_extra = shared & ~changed & (extra[0] != extra[1])
    kinds, of_side = (changed, changed_extra, only_a, only_b), (~is_b, ~is_b, ~is_b, is_b)
    firsts: list[list[tuple[int, int]]] = []
    for chosen, side in zip(kinds, of_side, strict=True):
        found = both.take(np.flatnonzero(leads & side & chosen[key]))
        order = np.lexsort((found["row"], found["part"]))[: bucket.examples]
        firsts.append([(int(one["part"]), int(one["row"])) for one in found[order]])
    repeats = (len(a) - has[0].sum(), len(b) - has[1].sum())
    return _Found(np.array([shared.sum(), *(chosen.sum() for chosen in kinds), *repeats], np.int64), firsts)


def _read_keys(shard: Shard, seen: Callable[[int], None]) -> bytes:
    place, where = open_place(shard.url), f"{shard.url}/{shard.info.name}"
    entries = bytearray()
    with local_copy(place.fs, place.child(shard.info.name)) as path:
        for row, blob in enumerate(read_blobs(path, range(shard.info.count), where=where)):
            record = decode_record(blob, where=f"{where}, record {row}")
            content = content_digest(record, encoded=blob)
            entries += pack_entry(key_digest(record.key), content, part=shard.number, row=row)
            entries += _extra_digest(record)[:8]
            seen(len(blob))
    return bytes(entries)


def _extra_digest(record: Record) -> bytes:
    """SHA-256 of the values in ``extra``, in whatever order they are stored."""
    values = replace(record, key="", image=b"", captions=(), label=None, extra=dict(sorted(record.extra.items())))
    return hashlib.sha256(encode_record(values)).digest()
