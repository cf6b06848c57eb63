"""Search for duplicate keys among many rows: seconds, memory and disk of each step, compared with the former way.

Files of keys like those of a conversion are made with a known number of repeats, and every repeat that is found is
checked. Then the numbers for two billion rows are computed from those that were measured.
"""

import argparse
import concurrent.futures
import contextlib
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt64

from clipa_eqx.progress import progress_bar
from conversion.records import duplicates
from conversion.records.buckets import PER_FILE, count_buckets
from conversion.records.duplicates import find_duplicates
from conversion.records.keys import ENTRY, REPEAT, Entries, Repeats
from conversion.records.part_report import UNFINISHED, keys_name
from conversion.records.places import open_place
from conversion.records.scratch import local_folder

_FORMERLY_PER_BUCKET, _FORMERLY_MOST_BUCKETS = 2**21, 256
_ALL = 2_000_000_000


class Measured(NamedTuple):
    """Cost of one search.

    Attributes:
        steps: seconds by step.
        driver: peak memory of the process that searches, bytes.
        task: peak memory of its largest worker process, bytes; that of the process itself without workers.
        disk: peak of temporary files, bytes.
    """

    steps: dict[str, float]
    driver: int
    task: int
    disk: int


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        rows = write_keys(Path(name), options)
        total = sum(rows.values())
        size = total * ENTRY.itemsize
        print(f"{total:,} keys in {len(rows):,} files, {size / 1e9:.2f} GB; one of {options.every} repeats another")
        measured = {count: in_new_process(search, name, rows, options.every, count) for count in options.workers}
        for workers, found in measured.items():
            report(f"{workers} process{'es' if workers > 1 else ''}", found, total)
        few = dict(list(rows.items())[: max(1, options.former_keys // options.rows)])
        if options.former_keys:
            report("the same, formerly", in_new_process(search_formerly, name, few, options.every), sum(few.values()))
            report("the same, now, 1 process", in_new_process(search, name, few, options.every, 1), sum(few.values()))
    print_account(measured[max(options.workers)], max(options.workers), total)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--keys", type=int, default=50_000_000, help="number of keys")
    parser.add_argument("--rows", type=int, default=10_000, help="keys of each file")
    parser.add_argument("--every", type=int, default=50, help="one of this many keys repeats an earlier one")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of processes")
    parser.add_argument("--former-keys", type=int, default=10_000_000, help="keys for the former way; 0: without it")
    parser.add_argument("--folder", type=Path, help="folder to write to (that of temporary files)")
    return parser.parse_args()


def write_keys(target: Path, options: argparse.Namespace) -> dict[int, int]:
    """Write the files of keys; return the number of keys in each."""
    (target / UNFINISHED).mkdir()
    rows: dict[int, int] = {}
    parts = range(-(-options.keys // options.rows))
    for part in progress_bar(parts, what="write keys", total=len(parts), unit="file"):
        numbers = np.arange(part * options.rows, min((part + 1) * options.rows, options.keys), dtype=np.uint64)
        entries = np.empty(len(numbers), ENTRY)
        is_repeat = repeats_earlier(numbers, options.every)
        # An earlier number that itself repeats none.
        every = np.uint64(options.every)
        earlier = _mixed(numbers) % np.maximum(numbers // every, np.uint64(1)) * every
        keys = np.where(is_repeat, earlier, numbers)
        entries["high"], entries["low"] = _mixed(keys), _mixed(~keys)
        entries["content"] = keys + (is_repeat & differs(numbers, options.every))
        entries["part"], entries["row"] = part, np.arange(len(numbers))
        (target / keys_name(part)).write_bytes(entries.tobytes())
        rows[part] = len(numbers)
    return rows


def repeats_earlier(numbers: UInt64[np.ndarray, " rows"], every: int) -> Bool[np.ndarray, " rows"]:
    """Mark the rows, by their number in the whole source, that have the key of an earlier row."""
    return numbers % np.uint64(every) == np.uint64(every - 1)


def differs(numbers: UInt64[np.ndarray, " rows"], every: int) -> Bool[np.ndarray, " rows"]:
    """Mark those of these that have another content than the first row with their key."""
    return numbers // np.uint64(every) % np.uint64(2) == np.uint64(1)


def _mixed(numbers: UInt64[np.ndarray, " rows"]) -> UInt64[np.ndarray, " rows"]:
    """Hashes of numbers, by SplitMix64; equal only for equal numbers."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def search(target: str, rows: dict[int, int], every: int, workers: int) -> Measured:
    """Search as a conversion does, and check every repeat."""
    steps: dict[str, float] = {}
    disk = 0
    run_jobs, remove_files = duplicates.run_jobs, duplicates.remove_files

    def timed(work: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
        start = time.perf_counter()
        yield from run_jobs(work, *arguments, **options)
        steps[work.__name__] = time.perf_counter() - start

    def measured(folder: Any, names: list[str]) -> None:
        nonlocal disk
        disk = sum(path.stat().st_size for path in Path(folder.path).iterdir())  # it is never more
        remove_files(folder, names)

    duplicates.run_jobs = timed
    duplicates.remove_files = measured
    place = open_place(target)
    with local_folder(place) as folder:
        found = find_duplicates(place, rows, folder=folder, workers=workers)
        start = time.perf_counter()
        check(((part, repeats) for part, repeats in found.of_parts(found.counts)), rows, every)
        steps["read repeats"] = time.perf_counter() - start
    return Measured(steps, *_memory(), disk)


def check(found: Iterator[tuple[int, Repeats]], rows: dict[int, int], every: int) -> None:
    """Check that exactly the planted repeats were found, in the order of the source."""
    expected = (
        (part, planted) for part in rows if len(planted := _planted(part, rows[part], max(rows.values()), every))
    )
    for (part, repeats), (wanted, planted) in zip(found, expected, strict=True):
        assert part == wanted
        assert np.array_equal(repeats, planted)


def _planted(part: int, count: int, per_part: int, every: int) -> Repeats:
    numbers = np.arange(count, dtype=np.uint64) + np.uint64(part * per_part)
    chosen = np.flatnonzero(repeats_earlier(numbers, every))
    planted = np.empty(len(chosen), REPEAT)
    planted["part"], planted["row"], planted["differs"] = part, chosen, differs(numbers[chosen], every)
    return planted


def search_formerly(target: str, rows: dict[int, int], every: int) -> Measured:
    """Search in this process alone, with an open file for each bucket."""
    steps: dict[str, float] = {}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        count = min(max(1, -(-sum(rows.values()) // _FORMERLY_PER_BUCKET)), _FORMERLY_MOST_BUCKETS)
        files = [stack.enter_context((Path(folder) / str(i)).open("w+b", buffering=2**16)) for i in range(count)]
        for part in progress_bar(rows, what="read keys", total=len(rows), unit="part"):
            entries = np.frombuffer((Path(target) / keys_name(part)).read_bytes(), ENTRY)
            numbers = entries["high"] % np.uint64(count)
            for i in np.unique(numbers):
                files[int(i)].write(entries[numbers == i].tobytes())
        steps["distribute"] = time.perf_counter() - start
        start = time.perf_counter()
        found = [_repeated(file) for file in progress_bar(files, what="compare keys", total=count, unit="bucket")]
        steps["compare"] = time.perf_counter() - start
        disk = sum(path.stat().st_size for path in Path(folder).iterdir())
    start = time.perf_counter()
    repeats = np.sort(np.concatenate(found), order=["part", "row"])
    parts = np.unique(repeats["part"])
    check(((part, repeats[repeats["part"] == part]) for part in parts.tolist()), rows, every)
    steps["read repeats"] = time.perf_counter() - start
    return Measured(steps, *_memory(), disk)


def _repeated(file: BinaryIO) -> Repeats:
    file.seek(0)
    entries: Entries = np.frombuffer(file.read(), ENTRY)
    entries = entries[np.lexsort((entries["row"], entries["part"], entries["low"], entries["high"]))]
    is_first = np.ones(len(entries), bool)
    is_first[1:] = (entries["high"][1:] != entries["high"][:-1]) | (entries["low"][1:] != entries["low"][:-1])
    first = entries["content"][is_first][np.cumsum(is_first) - 1]
    repeats = np.empty(int((~is_first).sum()), REPEAT)
    repeats["part"], repeats["row"] = entries["part"][~is_first], entries["row"][~is_first]
    repeats["differs"] = (entries["content"] != first)[~is_first]
    return repeats


def in_new_process(work: Callable[..., Measured], *arguments: Any) -> Measured:
    """Measure in a process of its own, whose peak of memory is that of the work."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def _memory() -> tuple[int, int]:
    own, workers = (
        resource.getrusage(which).ru_maxrss * 1024 for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own, max(workers, 0) or own


def report(name: str, found: Measured, rows: int) -> None:
    """Print what one search of ``rows`` keys took."""
    seconds = sum(found.steps.values())
    steps = ", ".join(f"{step} {took:.1f}" for step, took in found.steps.items())
    print(f"\n{name}, {rows:,} keys: {seconds:.1f} s, {rows / seconds / 1e6:.2f} million keys/s")
    print(f"  seconds by step               {steps}")
    print(f"  peak memory, MB               {found.task / 1e6:.0f} of a task, {found.driver / 1e6:.0f} of the driver")
    print(f"  peak of temporary files       {found.disk / 1e9:.2f} GB")


def print_account(found: Measured, workers: int, rows: int) -> None:
    """Print what two billion rows take, by the sizes of tasks and the measured rates."""
    groups, buckets, size = -(-_ALL // PER_FILE), count_buckets(_ALL), _ALL * ENTRY.itemsize
    reads = groups * buckets
    rate = rows / sum(found.steps.get(step, 0.0) for step in ("distribute", "compare")) / workers
    print(f"\n{_ALL:,} rows, by arithmetic:")
    print(f"  files of keys                 {size / 1e9:.0f} GB, in the destination until it is finished")
    print(f"  temporary files               {size / 1e9:.0f} GB, and {REPEAT.itemsize} bytes for each duplicate")
    print(f"  tasks                         {groups:,} that distribute keys, {buckets:,} that compare a bucket")
    print(f"  range reads                   {reads:,} of {size / reads / 1e3:.0f} kB")
    print(f"  memory of a task              {found.task / 1e6:.0f} MB: tasks are as large as those measured")
    for count in (workers, 16, 128):
        print(f"  time on {f'{count} processes':<22}{_ALL / rate / count / 60:.1f} min")


if __name__ == "__main__":
    main()
