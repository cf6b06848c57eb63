"""Comparison of two record folders in bounded memory: keys they do not share, and keys with different samples."""

import contextlib
import hashlib
import heapq
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Int64, Shaped

from clipa_eqx.data.manifest import Manifest
from clipa_eqx.data.records import Record, decode_record, encode_record
from conversion.records.keys import (
    ENTRY,
    Buckets,
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
    with tempfile.TemporaryDirectory(prefix="clipa_eqx-keys-") as folder:
        rows = max(manifest.rows_written for manifest in manifests)
        sides = tuple(Buckets(Path(folder) / name, rows=rows, dtype=_ENTRY) for name in "ab")
        with contextlib.closing(sides[0]), contextlib.closing(sides[1]):
            for place, manifest, side in zip(places, manifests, sides, strict=True):
                for _, entries in over_shards(_read_keys, place, manifest, workers=workers, what=f"read {place.url}"):
                    side.add(np.frombuffer(entries, _ENTRY), by="high")
            for bucket_a, bucket_b in zip(*sides, strict=True):
                counts += _compare(bucket_a, bucket_b, firsts)
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

    def add(self, entries: Entries) -> None:
        """Consider entries, in any order."""
        found = cast(list[tuple[int, int]], entries[["part", "row"]].tolist())
        self._found = heapq.nsmallest(self._count, [*self._found, *found])

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


def _compare(
    a: Shaped[np.ndarray, " entries_a"], b: Shaped[np.ndarray, " entries_b"], firsts: Sequence[_Firsts]
) -> Int64[np.ndarray, "7"]:
    """Counts of one bucket of both sides, in the order of ``Difference``. Adds positions of examples to ``firsts``."""
    is_b = np.arange(len(a) + len(b)) >= len(a)
    both = np.concatenate([a, b])
    order = np.lexsort((both["row"], both["part"], is_b, both["low"], both["high"]))
    both, is_b = both[order], is_b[order]
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
    for first, chosen, side in zip(firsts, kinds, of_side, strict=True):
        first.add(both[leads & side & chosen[key]])
    repeats = (len(a) - has[0].sum(), len(b) - has[1].sum())
    return np.array([shared.sum(), *(chosen.sum() for chosen in kinds), *repeats], np.int64)


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
