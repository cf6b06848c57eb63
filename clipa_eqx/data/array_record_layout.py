"""Layout of ArrayRecord files as this package writes them: one record in each chunk, and nothing compressed.

array_record reads such files itself, so this is only for reading ranges of bytes, from buckets: the position of each
record from the end of the file, and a record from the bytes of its chunk. Checksums, which are HighwayHash, are not
compared.

A file is a sequence of chunks, which a header interrupts at each multiple of 64 KiB. The chunk in the last 64 KiB has
the position of the footer, which is a chunk with the positions of all others. The formats are published: that of chunks
in ``doc/riegeli_records_file_format.md`` of google/riegeli, that of the footer in ``cpp/layout.proto`` of
google/array_record.
"""

import struct
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8, UInt64

BLOCK = 2**16
"""Bytes from one block header to the next, and of the chunk at the end of a file."""

END = 256
"""First bytes of the last ``BLOCK`` of a file, which have all that it holds: the position of the footer."""

_BLOCK_HEADER = 24
_CHUNK_HEADER = struct.Struct("<8xQ8xQQ")  # without its two hashes: size of the data, type and records, decoded size
_RECORDS, _UNCOMPRESSED = ord("r"), 0
_MAGIC = 0x71930E704FDAE05E
_VERSION = 1
_TAGS = (0x08, 0x10, 0x18)  # of the fields of an entry in the footer: position, decoded size and records of a chunk


class LayoutError(RuntimeError):
    """The bytes are not those of such a file: it is damaged, or was written in another way."""


class OtherLayoutError(LayoutError):
    """The file is of another layout, which array_record reads: chunks of several records, or compressed ones."""


class Footer(NamedTuple):
    """The index of a file.

    Attributes:
        starts: position of the chunk of each record, in bytes.
        end: position of the end of the last one.
    """

    starts: Integer[np.ndarray, " records"]
    end: int


def footer_start(end: bytes, size: int) -> int:
    """The position of the footer.

    Args:
        end: the first ``END`` bytes of the last ``BLOCK`` of the file.
        size: bytes of the file.

    Raises:
        LayoutError: it has none.
    """
    values, lengths = _records(_chunk(end, size - BLOCK))
    fields = _varints(values[: int(lengths[0])])
    if len(fields) != 4 or tuple(fields[[0, 2]].tolist()) != _TAGS[:2] or int(fields[3]) != _MAGIC:
        raise LayoutError("the end of the file has no position of a footer")
    start = int(fields[1])
    if start > size - BLOCK:
        raise LayoutError("the footer begins after the end of the file")
    return start


def parse_footer(footer: bytes, start: int) -> Footer:
    """The index of a file.

    Args:
        footer: the bytes of the footer, which may have others after it.
        start: its position.

    Raises:
        LayoutError: it is damaged, or of another layout.
    """
    values, lengths = _records(_chunk(footer, start))
    about, rest = values[: int(lengths[0])], values[int(lengths[0]) :]
    chunks, records = _counts(about)
    fields = _varints(rest)
    if len(lengths) != chunks + 1 or len(fields) != 6 * chunks:
        raise LayoutError("the footer has another number of entries than it counts")
    entries = fields.reshape(chunks, 6)
    if not (entries[:, ::2] == np.array(_TAGS, np.uint64)).all():
        raise LayoutError("the footer has entries of another kind")
    if records != chunks or not (entries[:, 5] == 1).all():
        raise OtherLayoutError("the file has chunks with several records")
    starts = entries[:, 1]
    if not (np.diff(starts) > 0).all() or (chunks and int(starts[-1]) >= start):
        raise LayoutError("the positions in the footer are not in order")
    return Footer(starts.astype(np.uint32 if start < 2**32 else np.uint64), start)


def parse_record(chunk: bytes, start: int) -> bytes:
    """A record from the bytes of its chunk.

    Args:
        chunk: the bytes, which may have others after them.
        start: the position of the chunk in the file.

    Raises:
        LayoutError: it is damaged, or is no chunk of one record.
    """
    data = _chunk(chunk, start)
    size, after = _varint(data, 1)
    length, values = _varint(data, after)
    if values != after + size or values + length != len(data):
        raise LayoutError(f"the chunk at {start} does not have the size of one record")
    return data[values:]


def _chunk(data: bytes, start: int) -> bytes:
    """The content of a chunk with records, without the block headers in it."""
    data = _without_block_headers(data, start)
    if len(data) < _CHUNK_HEADER.size:
        raise LayoutError(f"the chunk at {start} is cut")
    size, kind, _ = _CHUNK_HEADER.unpack_from(data)
    content = data[_CHUNK_HEADER.size : _CHUNK_HEADER.size + size]
    if kind % 256 != _RECORDS or len(content) != size or size < 3:
        raise LayoutError(f"at {start} is no chunk of records")
    if content[0] != _UNCOMPRESSED:
        raise OtherLayoutError(f"the chunk at {start} is compressed")
    return content


def _without_block_headers(data: bytes, start: int) -> bytes:
    first = -start % BLOCK
    if first >= len(data):
        return data
    parts = [data[:first]]
    parts += [data[at + _BLOCK_HEADER : at + BLOCK] for at in range(first, len(data), BLOCK)]
    return b"".join(parts)


def _records(content: bytes) -> tuple[bytes, UInt64[np.ndarray, " records"]]:
    """The bytes of all records of a chunk, and the length of each."""
    size, after = _varint(content, 1)
    lengths = _varints(content[after : after + size])
    values = content[after + size :]
    if not len(lengths) or int(lengths.sum()) != len(values):
        raise LayoutError("the records of a chunk do not have its size")
    return values, lengths


def _counts(about: bytes) -> tuple[int, int]:
    """Chunks and records of a file, from the head of its footer, a message in a message."""
    inner, at = _varint(about, 1)
    if about[:1] != b"\x0a" or at + inner > len(about):
        raise LayoutError("the footer is of another kind")
    fields = dict[int, int]()
    end = at + inner
    while at < end:
        tag, at = _varint(about, at)
        value, at = _varint(about, at)
        if tag % 8 == 2:  # a text: the options of the writer
            at += value
        fields[tag] = value
    if fields.get(0x08) != _VERSION:
        raise LayoutError(f"the file has version {fields.get(0x08)}, expected {_VERSION}")
    return fields.get(0x10, 0), fields.get(0x18, 0)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise LayoutError("a number is cut")


def _varints(data: bytes) -> UInt64[np.ndarray, " numbers"]:
    """All numbers of a sequence, at once: a footer has 60,000 of them for 10,000 records."""
    values: UInt8[np.ndarray, " bytes"] = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(values < 0x80)
    if len(data) == 0:
        return np.empty(0, np.uint64)
    if len(ends) == 0 or ends[-1] != len(values) - 1:
        raise LayoutError("a number is cut")
    starts = np.concatenate([[0], ends[:-1] + 1])
    numbers = (values[starts] & 0x7F).astype(np.uint64)
    longer = np.flatnonzero(ends > starts)  # the numbers with another byte
    for place in range(1, 10):
        more = (values[starts[longer] + place] & 0x7F).astype(np.uint64)
        numbers[longer] |= more << np.uint64(7 * place)
        longer = longer[ends[longer] > starts[longer] + place]
    if len(longer):
        raise LayoutError("a number is too long")
    return numbers
