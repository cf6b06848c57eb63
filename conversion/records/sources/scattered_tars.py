"""Tar archives whose samples are scattered, as `tar cf` writes a folder in directory order: members joined by name."""

import contextlib
import io
import tarfile
import tempfile
import zlib
from collections.abc import Generator, Iterator
from typing import BinaryIO, NamedTuple

from conversion.records.places import Place
from conversion.records.reading import local_copy
from conversion.records.rows import LOCAL_COPY, Tally
from conversion.records.sources.damage import Damaged
from conversion.records.sources.samples import Sample
from conversion.records.sources.tars import DAMAGE, is_gzip, read_headers

_CHUNK = 2**16


class _Place(NamedTuple):
    """Place of the content of a member: start and size in the archive without compression; size 0 without content."""

    start: int
    size: int


def read_joined(place: Place, path: str, tally: Tally) -> Iterator[tuple[str, Sample]]:
    """Yield the samples of a tar in the order of their first members, wherever the others are.

    The headers are read first. Memory is for the names and places of the members, about 0.3 kB for each, not for their
    contents. A compressed or remote archive is copied to a temporary file.

    Args:
        tally: counts the members that belong to no sample, and the archive.

    Raises:
        Damaged: the rest cannot be read; samples whose members are in the rest are yielded without these.
        DataError: the file cannot be opened.
    """
    tally.scattered_tars += 1
    with _plain_copy(place, path) as plain, open(plain, "rb") as file:
        end = file.seek(0, io.SEEK_END)
        file.seek(0)
        found: dict[str, list[dict[str, _Place]]] = {}
        order: list[tuple[str, int]] = []
        damage: Exception | None = None
        try:
            for header in read_headers(file, tally):
                samples = found.setdefault(header.name, [])
                # A second member with the same name and suffix begins a sample of its own, which is a duplicate key.
                if not samples or header.suffix in samples[-1]:
                    order.append((header.name, len(samples)))
                    samples.append({})
                start, size = header.member.offset_data, header.member.size if header.is_plain else 0
                if start + size > end:
                    raise tarfile.ReadError("the data of a member are cut")
                samples[-1][header.suffix] = _Place(start, size)
        except DAMAGE as error:
            damage = error
        for name, number in order:
            if places := found[name][number]:
                yield name, {suffix: _content(file, at) for suffix, at in places.items()}
        if damage is not None:
            raise Damaged(str(damage)) from damage


def _content(file: BinaryIO, at: _Place) -> bytes:
    file.seek(at.start)
    return file.read(at.size)


@contextlib.contextmanager
def _plain_copy(place: Place, path: str) -> Generator[str]:
    """A local path with the archive, not compressed. A compressed one that is cut gives what comes before the cut."""
    with (
        local_copy(place.fs, path) as local,
        open(local, "rb") as raw,
        tempfile.TemporaryDirectory(prefix=LOCAL_COPY) as folder,
    ):
        if not is_gzip(raw):
            yield local
            return
        copy = f"{folder}/{path.rpartition('/')[2]}"
        with open(copy, "wb") as plain, contextlib.suppress(zlib.error):
            _unpack(raw, plain)
        yield copy


def _unpack(raw: BinaryIO, plain: BinaryIO) -> None:
    # Not by gzip.GzipFile, which loses what it has unpacked of a block before the cut.
    unpacker = zlib.decompressobj(31)
    while chunk := raw.read(_CHUNK):
        while chunk:
            plain.write(unpacker.decompress(chunk))
            chunk = unpacker.unused_data
            if unpacker.eof:
                unpacker = zlib.decompressobj(31)
