"""Shards of record folders: the entry of one in a manifest, and tables that hold any number of entries compactly."""

import bisect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from jaxtyping import Int64

from clipa_eqx.data.json_values import as_int, as_text
from clipa_eqx.errors import DataError

_DIGEST = 32  # bytes of a SHA-256
_FIELDS = frozenset({"name", "count", "bytes", "sha256"})


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard: file name inside the folder, number of records, size in bytes, SHA-256 of the file in hex.

    In a joined folder the name is preceded by the address of its member, as in ``../part-0/shard-00000.array_record``.
    """

    name: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True, eq=False)
class _Texts:
    """Texts in one block of UTF-8."""

    block: bytes
    ends: Int64[np.ndarray, " texts"]

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return self.block[start : int(self.ends[index])].decode(errors="surrogatepass")


@dataclass(frozen=True, eq=False)
class ShardTable(Sequence[ShardInfo]):
    """Shards in order, as a few arrays: about 90 bytes each, and pickled as such. Entries are made on demand.

    Attributes:
        counts: records of each shard.
        sizes: bytes of each shard.
        names: file name of each.
        hashes: SHA-256 of each in one block, or texts if the manifest has others.
        folders: folders of the shards, in order, as the manifest calls them; "" is that of the manifest.
        firsts: number of the first shard of each folder.
    """

    counts: Int64[np.ndarray, " shards"]
    sizes: Int64[np.ndarray, " shards"]
    names: _Texts
    hashes: bytes | _Texts
    folders: tuple[str, ...] = ("",)
    firsts: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, index: int) -> ShardInfo: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ShardInfo, ...]: ...
    def __getitem__(self, index: int | slice) -> ShardInfo | tuple[ShardInfo, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"shard {index} of {len(self)}")
        index %= len(self)
        return ShardInfo(
            name=self.name(index),
            count=int(self.counts[index]),
            bytes=int(self.sizes[index]),
            sha256=self.sha256(index),
        )

    def __iter__(self) -> Iterator[ShardInfo]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ShardTable):
            return (
                np.array_equal(self.counts, other.counts)
                and np.array_equal(self.sizes, other.sizes)
                and self.joined_hashes() == other.joined_hashes()
                and all(a == b for a, b in zip(self, other, strict=True))
            )
        return isinstance(other, tuple) and tuple(self) == other

    def __hash__(self) -> int:
        return hash((len(self), self.joined_hashes()))

    def __repr__(self) -> str:
        return f"<{len(self):,} shards>"

    def name(self, shard: int) -> str:
        """Name of a shard, as in its ``ShardInfo``."""
        folder, name = self.file(shard)
        return f"{self.folders[folder]}/{name}" if self.folders[folder] else name

    def file(self, shard: int) -> tuple[int, str]:
        """Position in ``folders`` of the folder of a shard, and the file name of the shard in it."""
        return bisect.bisect_right(self.firsts, shard) - 1, self.names[shard]

    def sha256(self, shard: int) -> str:
        """SHA-256 of a shard in hex."""
        if isinstance(self.hashes, bytes):
            return self.hashes[shard * _DIGEST : (shard + 1) * _DIGEST].hex()
        return self.hashes[shard]

    def joined_hashes(self) -> str:
        """SHA-256 of all shards in hex, without anything between them."""
        return self.hashes.hex() if isinstance(self.hashes, bytes) else self.hashes.block.decode(errors="surrogatepass")

    def rows_of_folders(self) -> list[int]:
        """Number of records of each folder."""
        ends = np.concatenate([[0], np.cumsum(self.counts)])
        starts = ends[list(self.firsts)]
        return np.diff([*starts, ends[-1]]).tolist()

    def contents(self) -> list[list[int | str]]:
        """Number of records and SHA-256 of each shard: what identifies the records in it."""
        return [[count, self.sha256(shard)] for shard, count in enumerate(self.counts.tolist())]


def shard_table(shards: Sequence[ShardInfo]) -> ShardTable:
    """A table of these shards, of one folder; a table is returned unchanged.

    Raises:
        DataError: a number is beyond 2^63.
    """
    if isinstance(shards, ShardTable):
        return shards
    return _pack(
        [shard.name for shard in shards],
        [shard.count for shard in shards],
        [shard.bytes for shard in shards],
        [shard.sha256 for shard in shards],
    )


def joined_table(tables: Sequence[ShardTable], folders: Sequence[str]) -> ShardTable:
    """All shards of several folders, one after the other.

    Args:
        tables: shards of each folder, which are in that folder itself.
        folders: addresses of the folders, relative to that of the joined manifest, or full.
    """
    starts = np.cumsum([0, *(len(table) for table in tables)])
    is_plain = all(isinstance(table.hashes, bytes) for table in tables)
    hashes = [table.hashes for table in tables if isinstance(table.hashes, bytes)]
    return ShardTable(
        counts=np.concatenate([np.empty(0, np.int64), *(table.counts for table in tables)]),
        sizes=np.concatenate([np.empty(0, np.int64), *(table.sizes for table in tables)]),
        names=_joined_texts([table.names for table in tables]),
        hashes=b"".join(hashes)
        if is_plain
        else _texts([table.sha256(shard) for table in tables for shard in range(len(table))]),
        folders=tuple(folders),
        firsts=tuple(starts[:-1].tolist()),
    )


def shards_from_json(content: Sequence[object], *, where: str) -> ShardTable:
    """Parse the list of shards of a manifest; every message starts with ``where``.

    Raises:
        DataError: an entry is not valid.
    """
    names: list[str] = []
    counts: list[int] = []
    sizes: list[int] = []
    hashes: list[str] = []
    for entry in content:
        if not isinstance(entry, dict):
            raise DataError(f"{where}: shard must be a map, got {entry!r}")
        if entry.keys() != _FIELDS:
            raise DataError(f"{where}: a shard needs name, count, bytes, sha256, got {sorted(map(str, entry))}")
        name = as_text(entry["name"], f"{where}: shard name")
        if "/" in name or name in ("", ".", ".."):
            raise DataError(f"{where}: shard name {name!r} must be a file name inside the folder")
        count, size, digest = entry["count"], entry["bytes"], entry["sha256"]
        if type(count) is not int or type(size) is not int or type(digest) is not str:
            as_int(count, f"{where}: count of {name}")
            as_int(size, f"{where}: bytes of {name}")
            as_text(digest, f"{where}: sha256 of {name}")
        names.append(name)
        counts.append(count)
        sizes.append(size)
        hashes.append(digest)
    return _pack(names, counts, sizes, hashes)


def shards_to_json(shards: ShardTable) -> list[dict[str, int | str]]:
    """The list of shards of a manifest."""
    return [{"name": one.name, "count": one.count, "bytes": one.bytes, "sha256": one.sha256} for one in shards]


def _pack(names: Sequence[str], counts: Sequence[int], sizes: Sequence[int], hashes: Sequence[str]) -> ShardTable:
    if max(sum(map(abs, counts)), sum(map(abs, sizes))) >= 2**63:
        raise DataError("manifest: records and bytes of all shards must each be below 2^63")
    return ShardTable(
        counts=np.array(counts, np.int64), sizes=np.array(sizes, np.int64), names=_texts(names), hashes=_hashes(hashes)
    )


def _texts(texts: Sequence[str]) -> _Texts:
    encoded = [text.encode(errors="surrogatepass") for text in texts]
    return _Texts(b"".join(encoded), np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded))))


def _joined_texts(texts: Sequence[_Texts]) -> _Texts:
    starts = np.cumsum([0, *(len(one.block) for one in texts)])
    ends = [one.ends + start for one, start in zip(texts, starts[:-1], strict=True)]
    return _Texts(b"".join(one.block for one in texts), np.concatenate([np.empty(0, np.int64), *ends]))


def _hashes(hashes: Sequence[str]) -> bytes | _Texts:
    joined = "".join(hashes)
    is_plain = all(len(one) == 2 * _DIGEST for one in hashes) and re.fullmatch("[0-9a-f]*", joined) is not None
    return bytes.fromhex(joined) if is_plain else _texts(hashes)
