"""Seconds, exact counts and peak memory of conversions with --subset and --where, compared with those without."""

import argparse
import contextlib
import io
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt64
from PIL import Image

from conversion.records.convert import convert
from conversion.records.options import IngestOptions
from conversion.records.part_report import UNFINISHED
from conversion.records.places import open_place
from conversion.records.subset import prepare_ids
from conversion.records.subset_file import hash_subset, open_subset

PER_SHARD = 10_000
BLOCK = 512  # bytes of a tar's blocks
HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
ABSENT = 1000  # ids of the subset that no row has


class Result(NamedTuple):
    """Result of a task in a process of its own.

    Attributes:
        value: what it returned.
        seconds: its time.
        driver: MB of the process at its peak.
        worker: MB of its largest child process at its peak.
    """

    value: Any
    seconds: float
    driver: float
    worker: float


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        uids = np.random.default_rng(0).integers(0, 2**64, (options.rows, 2), np.uint64)
        start = time.perf_counter()
        write_source(folder / "source", uids)
        print(
            f"{options.rows:,} rows in tars, written in {time.perf_counter() - start:.0f} s; {options.workers} workers"
        )
        last = max(1, options.rows // PER_SHARD // 4) - 1
        first = f"{folder}/source/{{00000..{last:05d}}}.tar"
        for label, source, chosen, where in (
            ("all rows", f"{folder}/source", None, ()),
            ("--subset of 30 %", f"{folder}/source", 0.3, ()),
            ("all rows of the first shards", first, None, ()),
            ("--subset of 10 % of them", first, 0.1, ()),
            ("--where, all selected", first, None, ("number >= 0 and uid is not None",)),
            ("--where, 10 % selected", first, None, ("number < 11000",)),
        ):
            report(label, folder, source, chosen, where, uids, options.workers)
        del uids
        prepare(folder, options.ids)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the source, a multiple of 10,000")
    parser.add_argument("--ids", type=int, default=50_000_000, help="ids that are only prepared")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="folder to write to (that of temporary files)")
    return parser.parse_args()


def report(
    label: str,
    folder: Path,
    source: str,
    chosen: float | None,
    where: tuple[str, ...],
    uids: UInt64[np.ndarray, "rows 2"],
    workers: int,
) -> None:
    """Convert, check the counts exactly, and print the numbers."""
    path: Path | None = None
    if chosen is not None:
        path = folder / "ids.npy"
        count = round(chosen * len(uids))
        rng = np.random.default_rng(1)
        absent = rng.integers(0, 2**64, (ABSENT, 2), np.uint64)
        ids = np.concatenate([uids[rng.permutation(len(uids))[:count]], absent])
        np.save(path, rng.permutation(ids).view("u8,u8").ravel())
    options = IngestOptions(validate="header", where=where, subset=None if path is None else str(path))
    result = in_process(_convert, source, str(folder / "out"), options, workers)
    rows, written, dropped, subset = result.value
    assert rows == written + sum(dropped.values())
    if chosen is not None and source == f"{folder}/source":
        assert (written, dropped) == (round(chosen * rows), {"not in the subset": rows - round(chosen * rows)})
        assert (subset["met"], subset["never_met"]) == (written, ABSENT)
    if chosen is not None:
        assert subset["met"] == written
    speed = f"{result.seconds:6.1f} s {rows / result.seconds:8,.0f} rows/s"
    peaks = f"peak {result.driver:4.0f} MB, of a worker {result.worker:4.0f} MB"
    print(f"{label:<30} {rows:9,} read {written:9,} written {speed}; {peaks}")


def _convert(source: str, target: str, options: IngestOptions, workers: int) -> Any:
    made = convert("webdataset", source, target, options=options, workers=workers, overwrite=True)
    return made.rows_read, made.rows_written, dict(made.rows_dropped), made.info.get("subset")


def prepare(folder: Path, count: int) -> None:
    """Hash and sort many ids, and print the numbers."""
    path = folder / "many.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype("u8,u8"), shape=(count,))
    rng = np.random.default_rng(2)
    for start in range(0, count, 2**20):
        piece = rng.integers(0, 2**64, (min(2**20, count - start), 2), np.uint64)
        array[start : start + len(piece)] = piece.view("u8,u8").ravel()
    array.flush()
    del array
    (folder / "prepared" / UNFINISHED).mkdir(parents=True)
    hashed = in_process(_hash, str(path))
    result = in_process(_prepare, str(path), str(folder / "prepared"))
    assert result.value == count
    print(
        f"{count:,} ids: hashed in {hashed.seconds:.1f} s, sorted in {result.seconds - hashed.seconds:.1f} s, peak "
        f"{result.driver:.0f} MB"
    )


def _hash(path: str) -> str:
    with open_subset(path, column=None) as file:
        return hash_subset(file)


def _prepare(path: str, target: str) -> int:
    with open_subset(path, column=None) as file:
        return prepare_ids(open_place(target), file, hash_subset(file)).count


def in_process(work: Callable[..., Any], *arguments: Any) -> Result:
    """Call a function in a new process, so that its peak of memory is its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, work, *arguments))
    process.start()
    sender.close()
    result: Result = receiver.recv()
    process.join()
    return result


def _work(sender: Connection, work: Callable[..., Any], *arguments: Any) -> None:
    start = time.perf_counter()
    with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):  # progress
        value = work(*arguments)
    seconds = time.perf_counter() - start
    own, child = (resource.getrusage(who).ru_maxrss / 1e3 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    sender.send(Result(value, seconds, own, child))


def write_source(folder: Path, uids: UInt64[np.ndarray, "rows 2"]) -> None:
    """Write tars in which each sample is one tiny JPEG, and JSON with its uid, a number from 10,000 on, and a text."""
    folder.mkdir()
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (90, 120, 30)).save(file, "JPEG")
    about = b'{"uid":"%s","number":%s,"text":"%s"}' % (b"u" * 32, b"n" * 5, b"k" * 9)
    numbers = np.arange(PER_SHARD)
    for shard in range(len(uids) // PER_SHARD):
        keys = digits(shard * PER_SHARD + numbers, 9)
        content = np.tile(np.frombuffer(about, np.uint8), (PER_SHARD, 1))
        for mark, values in (
            (b"u" * 32, uid_digits(uids[shard * PER_SHARD : (shard + 1) * PER_SHARD])),
            (b"n" * 5, digits(PER_SHARD + numbers, 5)),
            (b"k" * 9, keys),
        ):
            start = about.index(mark)
            content[:, start : start + len(mark)] = values
        image = np.tile(np.frombuffer(file.getvalue(), np.uint8), (PER_SHARD, 1))
        members = [member(keys, b".jpg", image), member(keys, b".json", content)]
        with (folder / f"{shard:05d}.tar").open("wb") as tar:
            tar.write(np.concatenate(members, axis=1).tobytes())
            tar.write(bytes(2 * BLOCK))


def member(
    keys: UInt8[np.ndarray, "rows digits"], suffix: bytes, content: UInt8[np.ndarray, "rows size"]
) -> UInt8[np.ndarray, "rows bytes"]:
    """The blocks of one member of each sample: its header and its content."""
    rows, size = content.shape
    header = np.zeros((rows, BLOCK), np.uint8)
    header[:, : keys.shape[1]] = keys
    for start, text in (
        (keys.shape[1], suffix),
        (100, b"0000644\x000000000\x000000000\x00"),
        (124, b"%011o\x00" % size),
        (136, b"00000000000\x00" + b" " * 8 + b"0"),
        (257, b"ustar\x0000"),
    ):
        header[:, start : start + len(text)] = np.frombuffer(text, np.uint8)
    sums = header.sum(axis=1, dtype=np.int64)
    header[:, 148:154] = np.stack([(sums >> 3 * place & 7) + ord("0") for place in range(5, -1, -1)], axis=1)
    header[:, 154:156] = (0, ord(" "))
    padding = np.zeros((rows, -size % BLOCK), np.uint8)
    return np.concatenate([header, content, padding], axis=1)


def digits(numbers: np.ndarray, count: int) -> UInt8[np.ndarray, "rows count"]:
    """The last decimal digits of each number."""
    places = 10 ** np.arange(count - 1, -1, -1)
    return (numbers[:, None] // places % 10 + ord("0")).astype(np.uint8)


def uid_digits(uids: UInt64[np.ndarray, "rows 2"]) -> UInt8[np.ndarray, "rows 32"]:
    """The hexadecimal digits of each uid."""
    raw = uids.astype(">u8").view(np.uint8).reshape(len(uids), 16)
    return np.stack([HEX[raw >> 4], HEX[raw & 15]], axis=2).reshape(len(uids), 32)


if __name__ == "__main__":
    main()
