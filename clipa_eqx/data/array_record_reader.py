"""Read folders of records by index, from any thread or process, with errors that name shard, index and key."""

import bisect
import importlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clipa_eqx.data.array_record_writer import hash_file
from clipa_eqx.data.manifest import Manifest, read_manifest
from clipa_eqx.data.records import Record, decode_record
from clipa_eqx.errors import DataError


class RecordSource:
    """The records of a folder in a fixed order: `len(source)`, `source[i]`, `source.read([i, j, ...])`.

    Threads may share one source. Pickling sends the folder and manifest only; files are opened at the first read in
    each process.
    """

    def __init__(self, *, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._ends = list(itertools.accumulate(shard.count for shard in manifest.shards))
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.manifest.rows_written

    def __getitem__(self, index: int) -> Record:
        """The record at `index` (0 <= index < len); IndexError outside, DataError if it is damaged."""
        return self.read([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        """Several records by one read per shard; the name is the one that batching libraries look for."""
        return self.read(indices)

    def __iter__(self) -> Iterator[Record]:
        for index in range(len(self)):
            yield self[index]

    def read(self, indices: Sequence[int]) -> list[Record]:
        """The records at `indices`, in that order, with one read per shard.

        Raises:
            IndexError: an index outside the source.
            DataError: a record is damaged; the message names its shard, its index there and its key if legible.
        """
        wanted: dict[int, list[tuple[int, int]]] = {}
        for row, index in enumerate(indices):
            shard, position = self.locate(index)
            wanted.setdefault(shard, []).append((row, position))
        records: dict[int, Record] = {}
        for shard, rows in wanted.items():
            blobs = self._read_shard(shard, [position for _, position in rows])
            for (row, position), blob in zip(rows, blobs, strict=True):
                records[row] = decode_record(blob, where=self._where(shard, position))
        return [records[row] for row in range(len(indices))]

    def locate(self, index: int) -> tuple[int, int]:
        """(number of the shard, position inside it) of a record."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {self.folder}: there are {len(self)} records")
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard] - self.manifest.shards[shard].count)

    def describe(self, index: int) -> str:
        """Where a record is, for messages: shard file and position in it."""
        return self._where(*self.locate(index))

    def close(self) -> None:
        """Close the open files; the next read opens them again."""
        with self._lock:
            for reader in self._readers.values():
                reader.close()
            self._readers.clear()

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        RecordSource.__init__(self, folder=state["folder"], manifest=state["manifest"])

    def _where(self, shard: int, position: int) -> str:
        return f"{self.folder / self.manifest.shards[shard].name}, record {position}"

    def _read_shard(self, shard: int, positions: list[int]) -> list[bytes]:
        reader = self._open(shard)
        try:
            return reader.read(positions)
        except RuntimeError as error:
            if len(positions) > 1:  # read one by one, so that the message names the damaged one
                return [self._read_shard(shard, [position])[0] for position in positions]
            raise DataError(
                f"{self._where(shard, positions[0])} cannot be read: {error}; "
                "the file is damaged, restore it from its source (verify() lists every damaged shard)"
            ) from error

    def _open(self, shard: int) -> Any:
        with self._lock:
            if shard not in self._readers:
                # A compiled module without type stubs, hence by name.
                array_record = importlib.import_module("array_record.python.array_record_module")

                info = self.manifest.shards[shard]
                path = self.folder / info.name
                _check_size(path, expected=info.bytes)
                reader = array_record.ArrayRecordReader(str(path), options="readahead_buffer_size:0")
                # A cut file can open without an error and claim to hold nothing, so the count is compared here.
                try:
                    count: int = reader.num_records()
                except RuntimeError as error:
                    raise DataError(f"shard {path} is damaged: {error}; restore it from its source") from error
                if count != info.count:
                    raise DataError(f"shard {path} holds {count} records, its manifest says {info.count}; restore it")
                self._readers[shard] = reader
            return self._readers[shard]


def open_records(folder: str | Path) -> RecordSource:
    """Open a record folder; sizes of all shards are compared with the manifest, contents are not read.

    ```python
    source = open_records("data/cc12m")
    source[0].captions
    ```

    Raises:
        DataError: folder, manifest or a shard is missing, or a shard has another size than the manifest says.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        _check_size(folder / shard.name, expected=shard.bytes)
    return RecordSource(folder=folder, manifest=manifest)


def verify(folder: str | Path) -> Manifest:
    """Hash every shard again and compare with the manifest, which is returned.

    Raises:
        DataError: listing every shard that is missing or changed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    problems: list[str] = []
    for shard in manifest.shards:
        path = folder / shard.name
        if not path.is_file():
            problems.append(f"{shard.name} is missing")
        elif (size := path.stat().st_size) != shard.bytes:
            problems.append(f"{shard.name} has {size} bytes, expected {shard.bytes}")
        elif (digest := hash_file(path)) != shard.sha256:
            problems.append(f"{shard.name} has SHA-256 {digest[:12]}..., expected {shard.sha256[:12]}...")
    if problems:
        raise DataError(f"data folder {folder} is damaged: {'; '.join(problems)}; restore these files")
    return manifest


def _check_size(path: Path, *, expected: int) -> None:
    if not path.is_file():
        raise DataError(f"shard {path} is missing; restore it or convert the data again")
    size = path.stat().st_size
    if size != expected:
        raise DataError(
            f"shard {path} has {size} bytes, its manifest says {expected}: it is cut or changed; restore it"
        )
