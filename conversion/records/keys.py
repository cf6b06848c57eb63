"""Keys of billions of rows in bounded memory: fingerprints of sets, and hashes spread over buckets on disk."""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Bool, Shaped

from clipa_eqx.data.records import Record, encode_record

# Per row: 128 bits of the key's SHA-256, 64 of the content's, and where the row is.
ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("content", "<u8"), ("part", "<u4"), ("row", "<u4")])
_ROWS_PER_BUCKET = 2**21  # 64 MB of entries
_MOST_BUCKETS = 256  # open files
_MODULUS = 2**256

Entries = Shaped[np.ndarray, " entries"]  # of ENTRY
Flags = Bool[np.ndarray, " entries"]


class Fingerprint:
    """A hash of a set that does not depend on order or sharding: the sum of the SHA-256 of its elements, mod 2^256."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def add(self, digest: bytes) -> None:
        self.value = (self.value + int.from_bytes(digest, "big")) % _MODULUS

    def hex(self) -> str:
        return f"{self.value:064x}"


def key_digest(key: str) -> bytes:
    """SHA-256 of a key."""
    return hashlib.sha256(key.encode()).digest()


def content_digest(record: Record, *, encoded: bytes) -> bytes:
    """SHA-256 of a record's key, picture, captions and label; `extra` does not count. `encoded` are its bytes."""
    return hashlib.sha256(encode_record(replace(record, extra={})) if record.extra else encoded).digest()


def pack_entry(key: bytes, content: bytes, *, part: int, row: int) -> bytes:
    """One ENTRY from the two digests of a row."""
    high, low = struct.unpack("<QQ", key[:16])
    return struct.pack("<QQQII", high, low, *struct.unpack("<Q", content[:8]), part, row)


def unpack_entries(data: bytes | bytearray) -> Entries:
    return np.frombuffer(bytes(data), ENTRY)


class Buckets:
    """Entries spread over files by `number % count`, so that one bucket at a time fits in memory.

    A bucket keeps the order in which its entries were added. The files are the folder's owner to remove.
    """

    def __init__(self, folder: Path, *, rows: int) -> None:
        folder.mkdir(parents=True)
        self.count = min(max(1, -(-rows // _ROWS_PER_BUCKET)), _MOST_BUCKETS)
        self._files: list[BinaryIO] = [(folder / f"{i}").open("w+b", buffering=2**16) for i in range(self.count)]

    def add(self, entries: Entries, *, by: str) -> None:
        """Append entries; those with equal values of field `by` share a bucket."""
        numbers = entries[by] % np.uint64(self.count)
        for i in np.unique(numbers):
            self._files[int(i)].write(entries[numbers == i].tobytes())

    def __iter__(self) -> Iterator[Entries]:
        for file in self._files:
            file.seek(0)
            yield unpack_entries(file.read())

    def close(self) -> None:
        for file in self._files:
            file.close()


def starts_of_keys(entries: Entries) -> Flags:
    """Of entries sorted by key: which are the first with their key."""
    is_first = np.ones(len(entries), bool)
    is_first[1:] = (entries["high"][1:] != entries["high"][:-1]) | (entries["low"][1:] != entries["low"][:-1])
    return is_first


def repeated(entries: Entries) -> tuple[Shaped[np.ndarray, " repeats"], Bool[np.ndarray, " repeats"]]:
    """The entries whose key occurred before, and whether each has other content than the first with its key.

    "Before" is by part and row, so the first occurrence of a key in the source's order is never among them.
    """
    entries = entries[np.lexsort((entries["row"], entries["part"], entries["low"], entries["high"]))]
    is_first = starts_of_keys(entries)
    first = entries["content"][is_first][np.cumsum(is_first) - 1]
    return entries[~is_first], (entries["content"] != first)[~is_first]
