"""Keys of rows: their hashes, fingerprints of sets of rows, and the rows whose key an earlier row has."""

import hashlib
import struct
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int64, Shaped, UInt64

from clipa_eqx.data.records import Record, encode_record

# Entry of a row: 128 bits of the SHA-256 of its key, 64 of that of its content, and its part and row.
ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("content", "<u8"), ("part", "<u4"), ("row", "<u4")])
# A row whose key an earlier row has, and whether its content differs from that of the first such row.
REPEAT = np.dtype([("part", "<u4"), ("row", "<u4"), ("differs", "?")])
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


def starts_of_keys(entries: Entries) -> Flags:
    """Mark the first entry of each key among entries that are sorted by key."""
    is_first = np.ones(len(entries), bool)
    is_first[1:] = (entries["high"][1:] != entries["high"][:-1]) | (entries["low"][1:] != entries["low"][:-1])
    return is_first


def find_repeats(entries: Entries) -> tuple[Int64[np.ndarray, " repeats"], Repeats]:
    """The entries whose key an earlier entry has, in their order.

    Args:
        entries: in the order of the source.

    Returns:
        Their positions among the entries, and what is known of them.
    """
    chosen = np.flatnonzero(_may_repeat(entries["high"]))
    order = chosen.take(np.lexsort((entries["low"].take(chosen), entries["high"].take(chosen))))
    # The sort is stable, so the first entry of each key is its first one in the source.
    is_first = starts_of_keys(entries.take(order))
    content = entries["content"].take(order)
    differs = content != content[is_first].take(np.cumsum(is_first) - 1)
    again = np.flatnonzero(~is_first)
    again = again.take(np.argsort(order.take(again)))
    positions = order.take(again)
    repeats = np.empty(len(again), REPEAT)
    repeats["part"], repeats["row"] = entries["part"].take(positions), entries["row"].take(positions)
    repeats["differs"] = differs.take(again)
    return positions, repeats


def _may_repeat(numbers: UInt64[np.ndarray, " entries"]) -> Flags:
    """Mark the numbers that occur several times. Most keys occur once, and one sort of one column excludes them."""
    order = np.argsort(numbers)
    ordered = numbers.take(order)
    is_same = ordered[1:] == ordered[:-1]
    flags = np.zeros(len(numbers), bool)
    flags[order[1:][is_same]] = True
    flags[order[:-1][is_same]] = True
    return flags
