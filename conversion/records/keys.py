"""Keys of billions of rows in bounded memory: fingerprints of sets, and hashes distributed to buckets on disk."""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Bool, Shaped

from clipa_eqx.data.records import Record, encode_record

# Entry of a row: 128 bits of the SHA-256 of its key, 64 of that of its content, and its part and row.
ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("content", "<u8"), ("part", "<u4"), ("row", "<u4")])
# A row whose key an earlier row has, and whether its content differs from that of the first such row.
REPEAT = np.dtype([("part", "<u4"), ("row", "<u4"), ("differs", "?")])
_ROWS_PER_BUCKET = 2**21  # 64 MB of entries
_MOST_BUCKETS = 256  # open files
_MODULUS = 2**256

Entries = Shaped[np.ndarray, " entries"]  # of dtype ENTRY
Repeats = Shaped[np.ndarray, " repeats"]  # of dtype REPEAT
Flags = Bool[np.ndarray, " entries"]


class Fingerprint:
    """Hash of a set, independent of order and sharding: the sum of the SHA-256 of its elements, modulo 2^256."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def add(self, digest: bytes) -> None:
        """Add an element by its SHA-256."""
        self.value = (self.value + int.from_bytes(digest, "big")) % _MODULUS

    def hex(self) -> str:
        """The hash in 64 hexadecimal digits."""
        return f"{self.value:064x}"


def key_digest(key: str) -> bytes:
    """SHA-256 of a key."""
    return hashlib.sha256(key.encode()).digest()


def content_digest(record: Record, *, encoded: bytes) -> bytes:
    """SHA-256 of the key, image, captions and label of a record, without ``extra``. ``encoded`` are its bytes."""
    return hashlib.sha256(encode_record(replace(record, extra={})) if record.extra else encoded).digest()


def pack_entry(key: bytes, content: bytes, *, part: int, row: int) -> bytes:
    """The bytes of an ENTRY, from the two digests of a row."""
    high, low = struct.unpack("<QQ", key[:16])
    return struct.pack("<QQQII", high, low, *struct.unpack("<Q", content[:8]), part, row)


def unpack_entries(data: bytes | bytearray) -> Entries:
    """The entries in the bytes of several ENTRY."""
    return np.frombuffer(bytes(data), ENTRY)


class Buckets:
    """Items of one dtype, distributed to files by ``number % count``, so that one bucket at a time fits in memory.

    A bucket keeps the order in which its items were added. The owner of the folder removes the files.

    Args:
        rows: number of items to expect.
        dtype: ENTRY or REPEAT.
    """

    def __init__(self, folder: Path, *, rows: int, dtype: np.dtype[np.void] = ENTRY) -> None:
        folder.mkdir(parents=True)
        self._dtype = dtype
        self.count = min(max(1, -(-rows // _ROWS_PER_BUCKET)), _MOST_BUCKETS)
        self._files: list[BinaryIO] = [(folder / f"{i}").open("w+b", buffering=2**16) for i in range(self.count)]

    def add(self, items: Shaped[np.ndarray, " items"], *, by: str) -> None:
        """Append items; those with equal values of field ``by`` share a bucket."""
        numbers = items[by] % np.uint64(self.count)
        for i in np.unique(numbers):
            self._files[int(i)].write(items[numbers == i].tobytes())

    def __iter__(self) -> Iterator[Shaped[np.ndarray, " items"]]:
        for file in self._files:
            file.seek(0)
            yield np.frombuffer(file.read(), self._dtype)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def starts_of_keys(entries: Entries) -> Flags:
    """Mark the first entry of each key among entries that are sorted by key."""
    is_first = np.ones(len(entries), bool)
    is_first[1:] = (entries["high"][1:] != entries["high"][:-1]) | (entries["low"][1:] != entries["low"][:-1])
    return is_first


def repeated(entries: Entries) -> Repeats:
    """The entries whose key an earlier entry has.

    "Earlier" is by part and row, so the first occurrence of a key in the order of the source is never among them.
    """
    entries = entries[np.lexsort((entries["row"], entries["part"], entries["low"], entries["high"]))]
    is_first = starts_of_keys(entries)
    first = entries["content"][is_first][np.cumsum(is_first) - 1]
    again = ~is_first
    repeats = np.empty(int(again.sum()), REPEAT)
    repeats["part"], repeats["row"] = entries["part"][again], entries["row"][again]
    repeats["differs"] = (entries["content"] != first)[again]
    return repeats
