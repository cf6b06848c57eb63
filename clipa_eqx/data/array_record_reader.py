"""Read folders of records by index, from any thread or process, with errors that name shard, index and key."""

import bisect
import importlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from clipa_eqx.data.array_record_writer import hash_file
from clipa_eqx.data.manifest import MANIFEST_NAME, Manifest, manifest_from_json, read_manifest
from clipa_eqx.data.open_shards import OpenShards, check_size, is_url
from clipa_eqx.data.records import Record, decode_record
from clipa_eqx.errors import DataError

Item = TypeVar("Item")


class RecordSource:
    """The records of a folder in a fixed order: `len(source)`, `source[i]`, `source.read([i, j, ...])`.

    Threads may share one source. Pickling sends the folder and manifest only; files are opened at the first read in
    each process, and `OpenShards` says how many stay open.
    """

    def __init__(self, *, folder: str, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._ends = list(itertools.accumulate(shard.count for shard in manifest.shards))
        self._shards = OpenShards(folder, manifest.shards)

    def __len__(self) -> int:
        return self.manifest.rows_written

    def __getitem__(self, index: int) -> Record:
        """The record at `index` (0 <= index < len); IndexError outside, DataError if it is damaged."""
        return self.read([index])[0]

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
        return read_grouped(map(self.locate, indices), self._read_shard)

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
        self._shards.close()

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

    def _read_shard(self, shard: int, positions: list[int]) -> list[Record | DataError]:
        blobs = self._read_blobs(shard, positions)
        return [
            blob if isinstance(blob, DataError) else self._decode(blob, shard, position)
            for position, blob in zip(positions, blobs, strict=True)
        ]

    def _read_blobs(self, shard: int, positions: list[int]) -> list[bytes | DataError]:
        reader = self._shards.reader(shard)
        try:
            return reader.read(positions)
        except RuntimeError as error:
            if len(positions) > 1:  # read one by one, so that the message names the damaged one
                return [self._read_blobs(shard, [position])[0] for position in positions]
            problem = DataError(
                f"{self._where(shard, positions[0])} cannot be read: {error}; "
                "the file is damaged, restore it from its source (verify() lists every damaged shard)"
            )
            problem.__cause__ = error
            return [problem]


def read_grouped(places: Iterable[tuple[int, int]], read: Callable[[int, list[int]], Sequence[Item]]) -> list[Item]:
    """What lies at each (group, position), in that order, by one `read(group, positions)` per group."""
    wanted: dict[int, list[tuple[int, int]]] = {}
    for row, (group, position) in enumerate(places):
        wanted.setdefault(group, []).append((row, position))
    found: dict[int, Item] = {}
    for group, rows in wanted.items():
        items = read(group, [position for _, position in rows])
        found.update(zip((row for row, _ in rows), items, strict=True))
    return [found[row] for row in range(len(found))]


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
        check_size(Path(folder) / shard.name, expected=shard.bytes)
    return RecordSource(folder=str(folder), manifest=manifest)


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
