"""Records per second from a joined folder in a bucket and from the same folder on the local disk, in one run.

The bucket is a server on the loopback interface, which waits before each answer, as a storage far away does, and counts
requests, connections and bytes. Records are read at random in batches of 64, as training reads them, by exact
ranges of bytes (this release), and through array_record's own reader of buckets (earlier releases).
"""

import argparse
import asyncio
import contextlib
import json
import mmap
import multiprocessing
import os
import random
import re
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast
from unittest import mock
from urllib.parse import unquote, urlsplit

from clipa_eqx.data import open_shards
from clipa_eqx.data.array_record_files import open_reader
from clipa_eqx.data.array_record_reader import RecordSource, open_records, read_grouped
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.records import Record, decode_record
from conversion.records.join import join

Read = Callable[[Sequence[int]], object]
Ask = Callable[[str], dict[str, int]]

_BATCH = 64
_PIECE = 2**16  # bytes that the server writes at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=int, default=4, help="record folders that are joined (4)")
    parser.add_argument("--shards", type=int, default=10, help="shards of each (10)")
    parser.add_argument("--records", type=int, default=1_000, help="records of each shard (1000)")
    parser.add_argument("--bytes", type=int, default=20_000, help="size of an image (20000)")
    parser.add_argument("--latency", type=float, nargs="+", default=[0.0, 20.0], help="ms before an answer (0 20)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 8, 32], help="threads that read (1 8 32)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measurement (3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bucket"
        write_set(folder, options)
        print("on the local disk:")
        source = open_records(folder / "joined")
        for threads in options.threads:
            rate, _ = measure(source.read, len(source), threads, options.seconds)
            print(f"  {threads} threads: {rate:,.0f} records/s")
        with server(name) as ask:
            for latency in options.latency:
                ask(f"latency={latency}")
                print(f"in a bucket that answers after {latency:g} ms:", flush=True)
                measure_bucket(ask, options)


def write_set(folder: Path, options: argparse.Namespace) -> None:
    """Write the record folders, and join them."""
    rows = options.shards * options.records
    for number in range(options.folders):
        records = (Record(key=f"{number}-{i}", image=os.urandom(options.bytes), captions=("x",)) for i in range(rows))
        write_records(records, folder / f"part-{number}", records_per_shard=options.records)
    join(str(folder / "joined"), [str(folder / f"part-{number}") for number in range(options.folders)])


def measure_bucket(ask: Ask, options: argparse.Namespace) -> None:
    """Print the rates of both ways, what they ask for, and that of the first when no index stays open."""
    ask("counts")
    source = open_records("gs://bucket/joined")
    print(f"  opened with {in_words(ask('counts'), 1)}")
    source.read([shard * options.records for shard in range(len(source.manifest.shards))])
    shards = len(source.manifest.shards)
    print(f"  first record of each of {shards} shards: per shard {in_words(ask('counts'), shards)}")
    former = former_read(source)
    few = mock.patch.object(open_shards, "MOST_OPEN_RECORDS", 1)
    for title, read, bound in (
        ("ranges", source.read, contextlib.nullcontext()),
        ("array_record", former, contextlib.nullcontext()),
        ("ranges, no index kept", source.read, few),
    ):
        for threads in options.threads:
            with bound:
                if bound is few:
                    source.close()
                ask("counts")
                rate, count = measure(read, len(source), threads, options.seconds)
            print(f"  {title}, {threads} threads: {rate:,.0f} records/s, per record {in_words(ask('counts'), count)}")


def former_read(source: RecordSource) -> Read:
    """Random reads through array_record's own reader of buckets, with all shards open."""
    folder = source.folder.rpartition("/")[0]
    table = source.manifest.table
    readers = [
        open_reader(f"{folder}/{table.folders[at].removeprefix('../')}/{name}")
        for at, name in map(table.file, range(len(table)))
    ]

    def read_shard(shard: int, positions: list[int]) -> list[Record]:
        return [decode_record(blob, where="") for blob in readers[shard].read(positions)]

    return lambda indices: read_grouped(map(source.locate, indices), read_shard)


def measure(read: Read, records: int, threads: int, seconds: float) -> tuple[float, int]:
    """Records per second of random batches, and their number."""
    since = time.perf_counter()

    def work(seed: int) -> int:
        rng, count = random.Random(seed), 0
        while time.perf_counter() - since < seconds:
            read([rng.randrange(records) for _ in range(_BATCH)])
            count += _BATCH
        return count

    with ThreadPoolExecutor(threads) as pool:
        count = sum(pool.map(work, range(threads)))
    return count / (time.perf_counter() - since), count


def in_words(counts: dict[str, int], number: int) -> str:
    """Requests, new connections and bytes, divided by a number."""
    parts = (f"{counts['requests'] / number:.2f} requests", f"{counts['connections'] / number:.2f} connections")
    return f"{', '.join(parts)}, {counts['sent'] / number / 1000:,.0f} kB sent"


@contextlib.contextmanager
def server(root: str) -> Generator[Ask]:
    """Serve the files of a folder in another process; this one uses it. Yields a function that sends it a command."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, root), daemon=True)
    process.start()
    address = f"http://127.0.0.1:{here.recv()}"
    for variable in ("STORAGE_EMULATOR_HOST", "CLOUD_STORAGE_EMULATOR_ENDPOINT"):
        os.environ[variable] = address

    def ask(command: str) -> dict[str, int]:
        with urllib.request.urlopen(f"{address}/?{command}") as answer:
            return json.load(answer)

    try:
        yield ask
    finally:
        process.kill()
        process.join()


def serve(port: Connection, root: str) -> None:
    """Answer requests until the process is killed."""

    async def run() -> None:
        state = _State(root)
        listening = await asyncio.get_running_loop().create_server(lambda: _Client(state), "127.0.0.1", 0, backlog=1024)
        port.send(listening.sockets[0].getsockname()[1])
        await listening.serve_forever()

    asyncio.run(run())


class _State:
    """Files of the server, and what it has counted."""

    def __init__(self, root: str) -> None:
        self._root, self._files = root, dict[str, mmap.mmap]()
        self.latency = 0.0
        self.counts: Counter[str] = Counter()

    def content(self, path: str) -> mmap.mmap | None:
        """The content of .../b/BUCKET/o/NAME or .../BUCKET/NAME."""
        name = unquote(re.sub(r".*/b/([^/]+)/o/", r"\1/", path)).lstrip("/")
        if name not in self._files:
            file = Path(self._root) / name
            if not file.is_file():
                return None
            with file.open("rb") as opened:
                self._files[name] = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
        return self._files[name]

    def command(self, query: str) -> bytes:
        """Obey a command, and return the counts since the last one."""
        name, _, value = query.partition("=")
        if name == "latency":
            self.latency = float(value) / 1000
        counts = {name: self.counts[name] for name in ("requests", "connections", "sent")}
        self.counts.clear()
        return json.dumps(counts).encode()


class _Client(asyncio.Protocol):
    """A connection of HTTP/1.1."""

    def __init__(self, state: _State) -> None:
        self._state = state
        self._received = b""
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._is_counted = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._may_write.set()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            self._task = asyncio.get_running_loop().create_task(self._answer(head.decode()))

    async def _answer(self, head: str) -> None:
        state, url = self._state, urlsplit(head.split()[1])
        if url.path == "/":
            content = state.command(url.query)
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
            return
        state.counts["connections"] += not self._is_counted
        self._is_counted = True
        state.counts["requests"] += 1
        await asyncio.sleep(state.latency)
        content = state.content(url.path)
        if content is None:
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        start, end, status = 0, len(content), "200 OK"
        if found := re.search(r"range: *bytes=(\d*)-(\d*)", head, re.IGNORECASE):
            status = "206 Partial Content"
            start = int(found[1]) if found[1] else max(0, end - int(found[2]))
            end = min(end, int(found[2]) + 1) if found[1] and found[2] else end
        self._transport.write(
            f"HTTP/1.1 {status}\r\nContent-Range: bytes {start}-{end - 1}/{len(content)}\r\n"
            f"Content-Length: {end - start}\r\nx-goog-generation: 1\r\n\r\n".encode()
        )
        for at in range(start, end, _PIECE):
            await self._may_write.wait()
            if self._transport.is_closing():  # array_record has read what it wants
                return
            piece = content[at : min(at + _PIECE, end)]
            self._transport.write(piece)
            state.counts["sent"] += len(piece)


if __name__ == "__main__":
    main()
