"""Tar archives read in order, robust against headers that lie: members that share a name up to a dot are one sample."""

import contextlib
import errno
import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple, cast

from conversion.records.listing import is_hidden
from conversion.records.places import Place
from conversion.records.reading import open_file
from conversion.records.rows import Tally
from conversion.records.sources.damage import Damaged, Scattered
from conversion.records.sources.samples import Sample

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
"""Ends of the names of archives, in lower case."""

DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)
"""Errors of archives that are cut or damaged."""


class Header(NamedTuple):
    """The header of a member that belongs to a sample.

    Attributes:
        name: the name of the sample.
        suffix: the suffix in lower case, without its first dot.
    """

    name: str
    suffix: str
    member: tarfile.TarInfo
    tar: tarfile.TarFile

    @property
    def is_plain(self) -> bool:
        """Check whether the content follows the header; links, devices and sparse files have none here."""
        return self.member.isfile() and not self.member.issparse()  # a hole of any size fits into a small file


def read_samples(
    place: Place, path: str, tally: Tally, *, is_complete: Callable[[Sample], bool]
) -> Iterator[tuple[str, Sample]]:
    """Yield the complete samples, each with its name.

    Args:
        tally: counts the members that belong to no sample.
        is_complete: whether a sample before damage has all that it needs; otherwise the damage may have cut it.

    Raises:
        Damaged: the rest cannot be read.
        Scattered: a sample returns with another member.
        DataError: the file cannot be opened.
    """
    sample: Sample = {}
    name = ""
    done: dict[int, frozenset[str]] = {}  # suffixes by hash of the sample's name
    kinds: dict[frozenset[str], frozenset[str]] = {}
    try:
        for header, content in read_contents(place, path, tally):
            found, suffix = header.name, header.suffix
            # A second member with the same name and suffix begins a sample of its own, which is a duplicate key.
            if found != name or suffix in sample:
                if sample:
                    yield name, sample
                    suffixes = frozenset(sample)
                    done[hash(name)] = kinds.setdefault(suffixes, suffixes)
                if found != name and suffix not in done.get(hash(found), (suffix,)):
                    raise Scattered(found)
                name, sample = found, {}
            if content is None:
                raise Damaged("the data of a member are cut", key=found)
            sample[suffix] = content
    except DAMAGE as error:
        if is_complete(sample):
            yield name, sample
            name = ""
        raise Damaged(str(error), key=name) from error
    if sample:
        yield name, sample


def read_headers(file: Any, tally: Tally) -> Iterator[Header]:
    """Yield the header of each member of an archive that belongs to a sample. Raises one of ``DAMAGE``."""
    with _open_tar(file) as tar:
        while (member := _next(tar)) is not None:
            folder, _, base = member.name.rpartition("/")
            stem, dot, suffix = base.partition(".")
            if member.isdir():
                continue
            if is_hidden(member.name) or not stem or not dot or (stem.startswith("__") and stem.endswith("__")):
                tally.ignored_members += 1
                continue
            yield Header(f"{folder}/{stem}" if folder else stem, suffix.lower(), member, tar)
        # The library takes a broken header for the end of the archive; the real end is a block of zeros.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end-of-archive mark at byte {tar.offset}")


def read_contents(place: Place, path: str, tally: Tally) -> Iterator[tuple[Header, bytes | None]]:
    """Yield each member that belongs to a sample, with its content; None where the archive ends inside it.

    Raises one of ``DAMAGE``, or ``DataError`` if the file cannot be opened.
    """
    with open_file(place, path) as raw:
        is_compressed = is_gzip(raw)
        end: int | None = None if is_compressed else raw.seek(0, io.SEEK_END)
        raw.seek(0)
        with unpacked(raw) if is_compressed else raw as file:
            for header in read_headers(file, tally):
                yield header, _content(header, end)


def list_members(place: Place, path: str) -> Iterator[str]:
    """Yield the paths of the members that belong to a sample. Raises one of ``DAMAGE`` or ``DataError``."""
    with open_file(place, path) as raw, unpacked(raw) if is_gzip(raw) else raw as file:
        yield from (header.member.name for header in read_headers(file, Tally()))


def is_gzip(file: Any) -> bool:
    """Check whether an open file is compressed; its position is then the start."""
    magic: bytes = file.read(2)
    file.seek(0)
    return magic == b"\x1f\x8b"


def unpacked(file: Any) -> Any:
    """The content of an open compressed file. A buffer makes small steps back cheap."""
    return io.BufferedReader(cast(Any, gzip.GzipFile(fileobj=file)))


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


def _content(header: Header, end: int | None) -> bytes | None:
    member = header.member
    if not header.is_plain:
        return b""
    if end is not None and member.offset_data + member.size > end:
        return None
    try:
        return cast(Any, header.tar.extractfile(member)).read()
    except (tarfile.ReadError, MemoryError, OverflowError):
        return None
