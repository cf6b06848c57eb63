"""Search for rows with the key of an earlier row: tasks in bounded memory, over any number of rows.

First each task distributes the keys of a group of parts to buckets, into a file of its own. Then each task compares
the keys of one bucket, from its slice of each file, and writes the repeats in the order of the source. If the keys fit
in one bucket, a single task compares them all.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64, UInt32

from conversion.records.buckets import (
    PER_BUCKET,
    PER_FILE,
    BucketFile,
    Slice,
    count_buckets,
    cut,
    read_items,
    remove_files,
    slices_of_bucket,
    unique_name,
    write_buckets,
    write_items,
)
from conversion.records.keys import ENTRY, REPEAT, Repeats, find_repeats
from conversion.records.part_report import keys_name
from conversion.records.places import Place, open_place
from conversion.records.workers import Progress, Workers, run_jobs

Job = TypeVar("Job", "DistributeJob", "CompareJob")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class DistributeJob:
    """Keys to distribute to buckets.

    Attributes:
        number: number of the job, from 0.
        source: local path or URL of the folder with the files of keys.
        slices: the keys, in the order of the source.
        folder: local path or URL of the folder to write to.
        buckets: number of buckets.
    """

    number: int
    source: str
    slices: tuple[Slice, ...]
    folder: str
    buckets: int


@dataclass(frozen=True, kw_only=True)
class CompareJob:
    """Keys to compare, all those of one bucket.

    Attributes:
        number: number of the bucket.
        source: local path or URL of the folder with the files of keys.
        slices: the keys, in the order of the source.
        folder: local path or URL of the folder to write to.
        piece: number of keys that are compared together, if there are more than twice as many.
    """

    number: int
    source: str
    slices: tuple[Slice, ...]
    folder: str
    piece: int


class BucketRepeats(NamedTuple):
    """The repeats of a bucket.

    Attributes:
        name: the file with the repeats, in the order of the source; empty if there are none.
        parts: the parts that have repeats, ascending.
        counts: number of repeats in each of these parts.
    """

    name: str
    parts: UInt32[np.ndarray, " parts"]
    counts: Int64[np.ndarray, " parts"]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """All rows with the key of an earlier row. They are in files, which ``of_parts`` reads.

    Attributes:
        counts: number of these rows by part, of the parts that have any.
        folder: the folder with the files.
        names: the files, each in the order of the source.
        starts: for each file the position of the first repeat of each group of parts, then the number of repeats.
        most: number of repeats that are read together.
    """

    counts: Mapping[int, int]
    folder: Place = field(repr=False)
    names: Sequence[str] = field(repr=False)
    starts: Int64[np.ndarray, "files borders"] = field(repr=False)
    most: int = field(repr=False)

    def of_parts(self, wanted: Collection[int]) -> Iterator[tuple[int, Repeats]]:
        """Yield the repeats of each wanted part that has any, in the order of the source.

        At most 8 million are in memory, or those of one part if they are more.
        """
        totals = self.starts.sum(axis=0)  # repeats before each group
        low = 0
        while wanted and low < len(totals) - 1:
            high = max(low + 1, int(np.searchsorted(totals, totals[low] + self.most, side="right")) - 1)
            places = zip(self.names, self.starts[:, low].tolist(), self.starts[:, high].tolist(), strict=True)
            low = high
            repeats = read_items(self.folder, list(itertools.starmap(Slice, places)), REPEAT)
            repeats = repeats.take(np.lexsort((repeats["row"], repeats["part"])))
            parts, firsts = np.unique(repeats["part"], return_index=True)
            ends = itertools.pairwise([*firsts.tolist(), len(repeats)])
            for number, (start, end) in zip(parts.tolist(), ends, strict=True):
                if number in wanted:
                    yield number, repeats[start:end]


def find_duplicates(
    target: Place,
    rows: Mapping[int, int],
    *,
    folder: Place,
    workers: Workers,
    per_bucket: int = PER_BUCKET,
    per_file: int = PER_FILE,
) -> Duplicates:
    """Search the keys of all parts of a conversion for those that an earlier row has.

    A task has up to 8 million entries in memory, which takes less than half a gigabyte.

    Args:
        target: the destination, where each part has a file with its keys.
        rows: number of keys of each part.
        folder: an empty folder that all processes see. It gets 32 bytes per row and 9 per duplicate.
        workers: number of processes, or a cluster.
        per_bucket: number of keys that a task compares.
        per_file: number of keys that a task distributes.

    Raises:
        DataError: a file with keys cannot be read, or the folder cannot be written.
    """
    ordered = sorted(rows.items())
    keys = [Slice(keys_name(number), 0, count) for number, count in ordered]
    buckets = count_buckets(sum(rows.values()), per_bucket=per_bucket)
    files: list[BucketFile] = []
    if buckets > 1:
        files = _distribute(target, keys, folder=folder, buckets=buckets, most=per_file, workers=workers)
    jobs = (
        CompareJob(
            number=i,
            source=folder.url if files else target.url,
            slices=slices_of_bucket(files, i) if files else tuple(keys),
            folder=folder.url,
            piece=per_bucket,
        )
        for i in range(buckets)
    )
    borders = _borders(ordered, most=per_file)
    counts = np.zeros(int(borders[-1]), np.int64)
    names: list[str] = []
    starts: list[Int64[np.ndarray, " borders"]] = []
    work = _run(compare, jobs, what="compare keys", total=sum(rows.values()), workers=_most(workers, buckets))
    with contextlib.closing(work):
        for _, found in work:
            if found.name:
                counts[found.parts] += found.counts
                names.append(found.name)
                before = np.concatenate([[0], np.cumsum(found.counts)])
                starts.append(before[np.searchsorted(found.parts, borders)])
    remove_files(folder, [file.name for file in files])
    affected = np.flatnonzero(counts)
    return Duplicates(
        counts=dict(zip(affected.tolist(), counts[affected].tolist(), strict=True)),
        folder=folder,
        names=names,
        starts=np.array(starts, np.int64).reshape(-1, len(borders)),
        most=per_file,
    )


def distribute(job: DistributeJob, seen: Callable[[int], None]) -> BucketFile:
    """Write the keys of some parts in the order of their buckets. Calls ``seen`` with their number."""
    entries = read_items(open_place(job.source), job.slices, ENTRY)
    file = write_buckets(open_place(job.folder), unique_name("keys", job.number), entries, count=job.buckets)
    seen(len(entries))
    return file


def compare(job: CompareJob, seen: Callable[[int], None]) -> BucketRepeats:
    """Write the repeats of a bucket. Calls ``seen`` with its number of keys.

    A bucket is larger than usual only if some keys are in very many rows. It is then compared piece by piece with the
    first entry of each key so far, of which there are no more than in another bucket.
    """
    folder = open_place(job.folder)
    counts: Counter[int] = Counter()

    def counted() -> Iterator[Repeats]:
        for repeats in _repeats(job, seen):
            parts, numbers = np.unique(repeats["part"], return_counts=True)
            counts.update(dict(zip(parts.tolist(), numbers.tolist(), strict=True)))
            yield repeats

    found = counted()
    first = next(found, None)
    name = "" if first is None else unique_name("repeats", job.number)
    if first is not None:
        write_items(folder, name, itertools.chain([first], found))
    parts = sorted(counts)
    return BucketRepeats(name, np.array(parts, np.uint32), np.array([counts[part] for part in parts], np.int64))


def _repeats(job: CompareJob, seen: Callable[[int], None]) -> Iterator[Repeats]:
    """Yield the repeats of a bucket in one or several pieces, none of them empty."""
    source, total = open_place(job.source), sum(one.stop - one.start for one in job.slices)
    pieces = list(cut(job.slices, job.piece if total > 2 * job.piece else 2 * job.piece))
    firsts = np.empty(0, ENTRY)
    for slices in pieces:
        entries = read_items(source, slices, ENTRY)
        seen(len(entries))
        entries = np.concatenate([firsts, entries]) if len(firsts) else entries
        positions, repeats = find_repeats(entries)
        if len(repeats):
            yield repeats
        if len(pieces) > 1:
            is_first = np.ones(len(entries), bool)
            is_first[positions] = False
            firsts = entries.take(np.flatnonzero(is_first))


def _distribute(
    target: Place, keys: Sequence[Slice], *, folder: Place, buckets: int, most: int, workers: Workers
) -> list[BucketFile]:
    """All keys in files, in the order of the source."""
    total = sum(one.stop for one in keys)
    count = -(-total // most)
    jobs = (
        DistributeJob(number=i, source=target.url, slices=tuple(slices), folder=folder.url, buckets=buckets)
        for i, slices in enumerate(cut(keys, -(-total // count)))
    )
    work = _run(distribute, jobs, what="distribute keys", total=total, workers=_most(workers, count))
    with contextlib.closing(work):
        files = {job.number: file for job, file in work}
    return [files[i] for i in range(count)]


def _most(workers: Workers, jobs: int) -> Workers:
    """No more processes than there are jobs."""
    return min(workers, jobs) if isinstance(workers, int) else workers


def _run(
    work: Callable[[Job, Callable[[int], None]], Result],
    jobs: Iterable[Job],
    *,
    what: str,
    total: int,
    workers: Workers,
) -> Generator[tuple[Job, Result]]:
    progress = Progress(total=total, unit="row", what=what)
    try:
        results = run_jobs(work, jobs, workers=workers, progress=progress, name=lambda job: f"{what} {job.number}")
        with contextlib.closing(results):
            for job, result in results:
                progress.finish(sum(one.stop - one.start for one in job.slices))
                yield job, result
    finally:
        progress.close()


def _borders(rows: Sequence[tuple[int, int]], *, most: int) -> Int64[np.ndarray, " borders"]:
    """The first part of each group of consecutive parts that have up to ``most`` rows together, then the end."""
    borders: list[int] = []
    held = 0
    for part, count in rows:
        if not borders or held + count > most:
            borders.append(part)
            held = 0
        held += count
    return np.array([*borders, rows[-1][0] + 1 if rows else 0], np.int64)
