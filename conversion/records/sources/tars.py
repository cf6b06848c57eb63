"""Tar archives read in order, robust against headers that lie: members that share a name up to a dot are one sample."""

import contextlib
import errno
import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, cast

from conversion.records.listing import is_hidden
from conversion.records.places import Place
from conversion.records.reading import open_file
from conversion.records.rows import Tally
from conversion.records.sources.damage import Damaged

_DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)

Sample = dict[str, bytes]  # content by suffix, without its first dot


def read_samples(
    place: Place, path: str, tally: Tally, *, is_complete: Callable[[Sample], bool]
) -> Iterator[tuple[str, Sample]]:
    """Yield the complete samples, each with its name.

    Args:
        tally: counts the members that belong to no sample.
        is_complete: whether a sample before damage has all that it needs; otherwise the damage may have cut it.

    Raises:
        Damaged: the rest cannot be read.
        DataError: the file cannot be opened.
    """
    sample: Sample = {}
    name = ""
    try:
        for found, suffix, content in _members(place, path, tally):
            # A second member with the same name and suffix begins a sample of its own, which is a duplicate key.
            if found != name or suffix in sample:
                if sample:
                    yield name, sample
                name, sample = found, {}
            if content is None:
                raise Damaged("the data of a member are cut", key=found)
            sample[suffix] = content
    except _DAMAGE as error:
        if is_complete(sample):
            yield name, sample
            name = ""
        raise Damaged(str(error), key=name) from error
    if sample:
        yield name, sample


def _members(place: Place, path: str, tally: Tally) -> Iterator[tuple[str, str, bytes | None]]:
    """Yield (sample, suffix, content) of each file in the tar; content None where the archive ends inside it."""
    with open_file(place, path) as raw:
        magic = raw.read(2)
        end: int | None = None if magic == b"\x1f\x8b" else raw.seek(0, io.SEEK_END)
        raw.seek(0)
        # The buffer makes the small step back at the end cheap.
        plain: Any = io.BufferedReader(cast(Any, gzip.GzipFile(fileobj=raw))) if magic == b"\x1f\x8b" else raw
        with plain as file, _open_tar(file) as tar:
            while (member := _next(tar)) is not None:
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if member.isdir():
                    continue
                if is_hidden(member.name) or not stem or (stem.startswith("__") and stem.endswith("__")):
                    tally.ignored_members += 1
                    continue
                yield f"{folder}/{stem}" if folder else stem, suffix.lower(), _content(tar, member, end)
            # The library takes a broken header for the end of the archive; the real end is a block of zeros.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no end-of-archive mark at byte {tar.offset}")


def _open_tar(file: Any) -> tarfile.TarFile:
    with _header_errors("first header"):  # `open` reads it
        return tarfile.open(fileobj=file, mode="r:")


@contextlib.contextmanager
def _header_errors(what: str) -> Generator[None]:
    """Turn all errors of a hostile header into ``ReadError``: sizes may be negative, or exceed any memory or file."""
    try:
        yield
    except (ValueError, TypeError, LookupError, ArithmeticError, MemoryError, RecursionError) as error:
        raise tarfile.ReadError(f"broken {what}: {error!r}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a seek to before the beginning
            raise
        raise tarfile.ReadError(f"broken {what}: {error}") from error


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    with _header_errors(f"header at byte {tar.offset}"):
        member = tar.next()
    if member is not None and (member.size < 0 or tar.offset <= member.offset):
        raise tarfile.ReadError(f"broken header at byte {member.offset}: a size of {member.size}")
    cast(Any, tar).members = []  # the library would keep a description of every member
    return member


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, end: int | None) -> bytes | None:
    if not member.isfile() or member.issparse():  # a hole of any size fits into a small file
        return b""
    if end is not None and member.offset_data + member.size > end:
        return None
    try:
        return cast(Any, tar.extractfile(member)).read()
    except (tarfile.ReadError, MemoryError, OverflowError):
        return None
