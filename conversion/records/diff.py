"""Comparison of two record folders in bounded memory: keys they do not share, and keys with different samples."""

import contextlib
import heapq
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from clipa_eqx.data.manifest import Manifest
from conversion.records.buckets import Slice, count_buckets, read_items, slices_of_bucket
from conversion.records.keys import starts_of_keys
from conversion.records.manifests import read_manifest_of
from conversion.records.places import Place, open_place
from conversion.records.stored_keys import STORED, describe_record, distribute_keys
from conversion.records.workers import Progress, run_jobs


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
            distribute_keys(place, manifest, folder=folder, name=side, buckets=buckets, workers=workers)
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
            key, where = describe_record(place, manifest, shard, position)
            names.append(f"{key} ({where})")
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


def _compare_bucket(bucket: _Bucket, seen: Callable[[int], None]) -> _Found:
    del seen  # progress is in buckets
    folder = open_place(bucket.folder)
    a, b = (read_items(folder, slices, STORED) for slices in (bucket.a, bucket.b))
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
