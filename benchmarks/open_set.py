"""Time and memory to open a joined folder of very many shards, and to open them as earlier releases did, in one run.

Those had one manifest, an object for each shard, and asked for the size of every file, one after the other.
"""

import argparse
import bisect
import gc
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.manifest import Manifest, read_manifest, write_manifest
from clipa_eqx.data.shards import ShardInfo
from conversion.records.join import join

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """An entry as earlier releases had it."""

    name: str
    count: int
    bytes: int
    sha256: str


class _Found(NamedTuple):
    """Measurements of one way in a process of its own."""

    seconds_read: float
    seconds_check: float
    megabytes: float
    microseconds: float
    pickled: bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shards", type=int, default=231_000, help="as many as LAION-2B has")
    parser.add_argument("--folders", type=int, default=231, help="record folders that are joined")
    parser.add_argument("--records", type=int, default=10_000, help="records of each shard")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_folders(root, options)
        since = time.perf_counter()
        join(str(root / "joined"), [str(root / f"part-{number:05d}") for number in range(options.folders)])
        print(
            f"{options.shards:,} shards in {options.folders:,} folders, joined in {time.perf_counter() - since:.1f} s"
        )
        size = (root / "joined/manifest.json").stat().st_size
        print(f"the manifest of manifests has {size / 1e3:.0f} kB")
        for title, measure in (("one manifest, objects", measure_objects), ("joined folder, table", measure_table)):
            found = in_new_process(measure, str(root))
            seconds, megabytes = in_new_process(load, found.pickled)
            scale = 1e5 / options.shards
            print(
                f"{title}: manifests read in {found.seconds_read:.2f} s, files checked in {found.seconds_check:.2f} s, "
                f"{found.megabytes * scale:.1f} MB per 100,000 shards, {found.microseconds:.2f} us per lookup; "
                f"{len(found.pickled) / 1e6:.1f} MB sent to each worker, which loads it in {seconds:.2f} s and "
                f"holds {megabytes * scale:.1f} MB per 100,000 shards"
            )


def in_new_process(work: Callable[..., Any], *arguments: object) -> Any:
    """The result of a function in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def write_folders(root: Path, options: argparse.Namespace) -> None:
    """Write record folders of sparse files in the sizes of their manifests, and ``one`` manifest of all of them."""
    every: list[ShardInfo] = []
    for number in range(options.folders):
        folder = root / f"part-{number:05d}"
        folder.mkdir()
        shards: list[ShardInfo] = []
        for i in range(options.shards * number // options.folders, options.shards * (number + 1) // options.folders):
            digest = hashlib.sha256(str(i).encode()).hexdigest()
            info = ShardInfo(
                name=f"shard-{i:06d}-000.array_record", count=options.records, bytes=2**29 + i, sha256=digest
            )
            with (folder / info.name).open("wb") as file:
                file.truncate(info.bytes)
            shards.append(info)
        rows = sum(shard.count for shard in shards)
        write_manifest(folder, Manifest(shards=tuple(shards), rows_read=rows, rows_written=rows))
        every += shards
    rows = sum(shard.count for shard in every)
    (root / "one").mkdir()
    write_manifest(root / "one", Manifest(shards=tuple(every), rows_read=rows, rows_written=rows))


def measure_objects(folder: str) -> _Found:
    """The way of earlier releases."""
    root = Path(folder)
    paths = {path.name: path for part in root.glob("part-*") for path in part.iterdir()}
    before, since = memory(), time.perf_counter()
    content = json.loads((root / "one/manifest.json").read_bytes())
    shards = tuple(_parse(entry) for entry in content.pop("shards"))
    names = {shard.name for shard in shards}
    assert len(names) == len(shards)
    del content, names
    ends = list(itertools.accumulate(shard.count for shard in shards))
    read, since = time.perf_counter() - since, time.perf_counter()
    for shard in shards:
        path = paths[shard.name]
        assert path.is_file()
        assert path.stat().st_size == shard.bytes
    checked = time.perf_counter() - since

    def locate(index: int) -> tuple[int, int]:
        shard = bisect.bisect_right(ends, index)
        return shard, index - (ends[shard] - shards[shard].count)

    return _Found(read, checked, memory() - before, lookup(locate, ends[-1]), pickle.dumps((folder, shards)))


def measure_table(folder: str) -> _Found:
    """The way of this release."""
    before, since = memory(), time.perf_counter()
    joined = f"{folder}/joined"
    source = RecordSource(folder=joined, manifest=read_manifest(joined))
    read, since = time.perf_counter() - since, time.perf_counter()
    source.check_shards()
    checked = time.perf_counter() - since
    return _Found(read, checked, memory() - before, lookup(source.locate, len(source)), pickle.dumps(source))


def lookup(locate: Callable[[int], object], records: int) -> float:
    """Microseconds to find the shard of a random record."""
    rng = random.Random(0)
    indices = [rng.randrange(records) for _ in range(200_000)]
    since = time.perf_counter()
    for index in indices:
        locate(index)
    return (time.perf_counter() - since) / len(indices) * 1e6


def load(pickled: bytes) -> tuple[float, float]:
    """Seconds and megabytes that a worker process takes for what it is sent."""
    before, since = memory(), time.perf_counter()
    held = pickle.loads(pickled)
    seconds = time.perf_counter() - since
    found = memory() - before
    del held
    return seconds, found


def memory() -> float:
    """Megabytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 1e6


def _parse(entry: dict[str, Any]) -> _Shard:
    if Path(entry["name"]).name != entry["name"]:
        raise ValueError(entry)
    return _Shard(**entry)


if __name__ == "__main__":
    main()
