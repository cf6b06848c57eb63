"""Records of a folder by index, from any thread or process; errors name shard, index and key."""

import bisect
import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from clipa_eqx.data.addresses import is_url
from clipa_eqx.data.manifest import Manifest, read_manifest
from clipa_eqx.data.open_shards import OpenShards
from clipa_eqx.data.records import Record, decode_record
from clipa_eqx.data.shard_checks import check_shards
from clipa_eqx.errors import DataError

Item = TypeVar("Item")


class RecordSource:
    """Records of a folder in a fixed order: ``len(source)``, ``source[i]``, ``source.read([i, j, ...])``.

    Threads may share one source. Pickling sends folder and manifest only; each process opens files at its first read.
    ``OpenShards`` decides how many stay open.

    Attributes:
        folder (str): path or ``gs://`` URL of the record folder.
        manifest (Manifest): content of the folder.
    """

    def __init__(self, *, folder: str, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._ends = array("q", itertools.accumulate(manifest.table.counts.tolist()))
        self._shards = OpenShards(folder, manifest.shards)

    def __len__(self) -> int:
        return self.manifest.rows_written

    def __getitem__(self, index: int) -> Record:
        """Read the record at ``index``.

        Raises:
            IndexError: not 0 <= index < len.
            DataError: the record is damaged.
        """
        return self.read([index])[0]

    def __iter__(self) -> Iterator[Record]:
        for index in range(len(self)):
            yield self[index]

    def read(self, indices: Sequence[int], *, on_shard: Callable[[int], None] | None = None) -> list[Record]:
        """Read the records at ``indices``, in that order, with one read per shard.

        Args:
            indices: the records to read.
            on_shard: called before each read from a shard, with the index of the first record of that read.

        Raises:
            IndexError: an index outside the source.
            DataError: a record is damaged; the message names its shard, its index in the shard and, if legible, its
                key.
        """
        records: list[Record] = []
        for record in self.read_each(indices, on_shard=on_shard):
            if isinstance(record, DataError):
                raise record
            records.append(record)
        return records

    def read_each(
        self, indices: Sequence[int], *, on_shard: Callable[[int], None] | None = None
    ) -> list[Record | DataError]:
        """Read records like ``read``, but return the error of a damaged record in its place.

        Args:
            indices: the records to read.
            on_shard: called before each read from a shard, with the index of the first record of that read.

        Raises:
            IndexError: an index outside the source.
            DataError: a shard is missing or damaged as a whole.
        """
        places = list(map(self.locate, indices))
        wanted: dict[int, list[int]] = {}
        for shard, position in places:
            wanted.setdefault(shard, []).append(position)

        def waits(shard: int) -> None:
            if on_shard is not None:
                on_shard(self._start(shard) + wanted[shard][0])

        begun = self._shards.begin(wanted, waits=waits)

        def read(shard: int, positions: list[int]) -> list[Record | DataError]:
            waits(shard)
            return self._read_shard(shard, positions, begun.get(shard))

        return read_grouped(places, read)

    def locate(self, index: int) -> tuple[int, int]:
        """Return (number of the shard, position in the shard) of a record. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {self.folder}: there are {len(self)} records")
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - self._start(shard)

    def describe(self, index: int) -> str:
        """Name the shard file of a record and the position in it, for messages. Raises IndexError."""
        return self._where(*self.locate(index))

    def check_shards(self) -> None:
        """Compare names and sizes of shards with the manifest, as ``open_records`` does. Raises DataError."""
        check_shards(self._shards.addresses, self.manifest.table)

    def close(self) -> None:
        """Close the open files; the next read opens them again."""
        self._shards.close()

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        RecordSource.__init__(self, folder=state["folder"], manifest=state["manifest"])

    def _start(self, shard: int) -> int:
        """Index of the first record of a shard."""
        return self._ends[shard - 1] if shard else 0

    def _where(self, shard: int, position: int) -> str:
        return f"{self._shards.addresses[shard]}, record {position}"

    def _decode(self, blob: bytes, shard: int, position: int) -> Record | DataError:
        try:
            return decode_record(blob, where=self._where(shard, position))
        except DataError as error:
            return error

    def _read_shard(
        self, shard: int, positions: list[int], begun: Callable[[], Sequence[bytes]] | None
    ) -> list[Record | DataError]:
        blobs = self._read_blobs(shard, positions, begun)
        return [
            blob if isinstance(blob, DataError) else self._decode(blob, shard, position)
            for position, blob in zip(positions, blobs, strict=True)
        ]

    def _read_blobs(
        self, shard: int, positions: list[int], begun: Callable[[], Sequence[bytes]] | None = None
    ) -> Sequence[bytes | DataError]:
        """Records of a shard, or their errors; ``begun`` waits for those that are asked for already."""
        try:
            return self._shards.reader(shard).read(positions) if begun is None else begun()
        except RuntimeError as error:
            if len(positions) > 1:  # read one by one, so that the message names the damaged one
                return [self._read_blobs(shard, [position])[0] for position in positions]
            problem = DataError(
                f"{self._where(shard, positions[0])} cannot be read: {error}; "
                "the file is damaged, restore it from its source (verify_records() lists every damaged shard)"
            )
            problem.__cause__ = error
            return [problem]


def read_grouped(places: Iterable[tuple[int, int]], read: Callable[[int, list[int]], Sequence[Item]]) -> list[Item]:
    """Read the item at each (group, position), in that order, by one ``read(group, positions)`` per group."""
    wanted: dict[int, list[tuple[int, int]]] = {}
    for row, (group, position) in enumerate(places):
        wanted.setdefault(group, []).append((row, position))
    found: dict[int, Item] = {}
    for group, rows in wanted.items():
        items = read(group, [position for _, position in rows])
        found.update(zip((row for row, _ in rows), items, strict=True))
    return [found[row] for row in range(len(found))]


def open_records(folder: str | Path) -> RecordSource:
    """Open a record folder, also a joined one. Sizes of shards are compared with the manifest, contents are not read.

    Of more than ``shard_checks.MOST_SIZES`` shards, the names are compared, and the sizes of so many, evenly spread.
    The size and number of records of any shard are compared when it is first read.

    A ``gs://`` folder works too: TensorStore reads records from buckets, and the manifest is read with the package
    gcsfs. Sizes are not compared there, because that would take a request per shard.

    Examples:
        ```python
        source = open_records("data/cc12m")
        source[0].captions
        ```

    Raises:
        DataError: folder, manifest or a shard is missing, a shard has another size than in the manifest, or the folder
            is a URL that records are not read from.
    """
    address = str(folder).rstrip("/") if is_url(folder) else str(folder)
    source = RecordSource(folder=address, manifest=read_manifest(address))
    source.check_shards()
    return source
