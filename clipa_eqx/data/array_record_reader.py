"""Read folders of records by index, from any thread or process, with errors that name shard, index and key."""

import bisect
import importlib
import itertools
import re
import resource
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clipa_eqx.data.array_record_writer import hash_file
from clipa_eqx.data.manifest import MANIFEST_NAME, Manifest, manifest_from_json, read_manifest
from clipa_eqx.data.records import Record, decode_record
from clipa_eqx.errors import DataError


class RecordSource:
    """The records of a folder in a fixed order: `len(source)`, `source[i]`, `source.read([i, j, ...])`.

    Threads may share one source. Pickling sends the folder and manifest only; files are opened at the first read in
    each process.
    """

    def __init__(self, *, folder: str, manifest: Manifest) -> None:
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
        records: list[Record] = []
        for record in self.read_each(indices):
            if isinstance(record, DataError):
                raise record
            records.append(record)
        return records

    def read_each(self, indices: Sequence[int]) -> list[Record | DataError]:
        """As `read`, but a damaged record is returned as its error.

        Raises:
            IndexError: an index outside the source.
            DataError: a whole shard is missing or damaged.
        """
        wanted: dict[int, list[tuple[int, int]]] = {}
        for row, index in enumerate(indices):
            shard, position = self.locate(index)
            wanted.setdefault(shard, []).append((row, position))
        records: dict[int, Record | DataError] = {}
        for shard, rows in wanted.items():
            blobs = self._read_shard(shard, [position for _, position in rows])
            for (row, position), blob in zip(rows, blobs, strict=True):
                records[row] = blob if isinstance(blob, DataError) else self._decode(blob, shard, position)
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
        return f"{self.folder}/{self.manifest.shards[shard].name}, record {position}"

    def _decode(self, blob: bytes, shard: int, position: int) -> Record | DataError:
        try:
            return decode_record(blob, where=self._where(shard, position))
        except DataError as error:
            return error

    def _read_shard(self, shard: int, positions: list[int]) -> list[bytes | DataError]:
        reader = self._open(shard)
        try:
            return reader.read(positions)
        except RuntimeError as error:
            if len(positions) > 1:  # read one by one, so that the message names the damaged one
                return [self._read_shard(shard, [position])[0] for position in positions]
            problem = DataError(
                f"{self._where(shard, positions[0])} cannot be read: {error}; "
                "the file is damaged, restore it from its source (verify() lists every damaged shard)"
            )
            problem.__cause__ = error
            return [problem]

    def _open(self, shard: int) -> Any:
        with self._lock:
            if shard not in self._readers:
                # A compiled module without type stubs, hence by name.
                array_record = importlib.import_module("array_record.python.array_record_module")

                info = self.manifest.shards[shard]
                path = f"{self.folder}/{info.name}"
                if not is_url(self.folder):
                    _check_size(Path(path), expected=info.bytes)
                    _allow_open_files(len(self.manifest.shards))
                # A cut file can open without an error and claim to hold nothing, so the count is compared here.
                try:
                    reader = array_record.ArrayRecordReader(path, options="readahead_buffer_size:0")
                    count: int = reader.num_records()
                except RuntimeError as error:
                    raise DataError(f"shard {path} is damaged: {error}; restore it from its source") from error
                if count != info.count:
                    raise DataError(f"shard {path} holds {count} records, its manifest says {info.count}; restore it")
                self._readers[shard] = reader
            return self._readers[shard]


def open_records(folder: str | Path) -> RecordSource:
    """Open a record folder; sizes of all shards are compared with the manifest, contents are not read.

    A `gs://` folder works too: array_record reads shards from buckets itself. Its manifest is read through fsspec,
    which needs the package gcsfs; sizes are not compared, because that would be a request per shard.

    ```python
    source = open_records("data/cc12m")
    source[0].captions
    ```

    Raises:
        DataError: folder, manifest or a shard is missing, a shard has another size than the manifest says, or the
            folder is a URL that array_record cannot read.
    """
    if is_url(folder):
        return RecordSource(folder=str(folder).rstrip("/"), manifest=_read_bucket_manifest(str(folder).rstrip("/")))
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        _check_size(Path(folder) / shard.name, expected=shard.bytes)
    return RecordSource(folder=str(folder), manifest=manifest)


def is_url(folder: str | Path) -> bool:
    """Whether a folder lies in a bucket. DataError for a `Path` made of a URL, which has lost a slash."""
    text = str(folder)
    if re.match(r"[A-Za-z0-9+.-]+:/(?!/)", text):
        raise DataError(f"data folder {text} looks like a URL with one slash; give it as text, not as a Path")
    return "://" in text


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


def _read_bucket_manifest(folder: str) -> Manifest:
    where = f"{folder}/{MANIFEST_NAME}"
    if not folder.startswith("gs://"):
        raise DataError(
            f"data folder {folder}: records are read from local paths and gs:// only; copy it, or mount the bucket"
        )
    fsspec = importlib.import_module("fsspec")  # no type stubs
    try:
        with fsspec.open(where, "rb") as file:
            content: bytes = file.read()
    except ImportError as error:
        raise DataError(f"{where} cannot be read: {error}; pip install 'clipa_eqx[gcs]'") from error
    # Drivers raise errors of their own for missing files, credentials and connections.
    except Exception as error:
        raise DataError(
            f"{where} cannot be read ({type(error).__name__}: {error}); give a folder of a finished conversion, and "
            "check the credentials with `gcloud auth application-default login`"
        ) from error
    return manifest_from_json(content, where=where)


def _allow_open_files(shards: int) -> None:
    """Raise this process's limit of open files to what one open file per shard needs, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * shards + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, soft), hard))


def _check_size(path: Path, *, expected: int) -> None:
    if not path.is_file():
        raise DataError(f"shard {path} is missing; restore it or convert the data again")
    size = path.stat().st_size
    if size != expected:
        raise DataError(
            f"shard {path} has {size} bytes, its manifest says {expected}: it is cut or changed; restore it"
        )
