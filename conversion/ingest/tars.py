"""Webdataset tars: members that share a name up to its first dot are one sample."""

import contextlib
import errno
import gzip
import io
import tarfile
import zlib
from collections.abc import Generator, Iterator, Mapping
from typing import Any, cast

from clipa_eqx.data.records import ExtraValue
from conversion.ingest.columns import (
    CAPTION_COLUMNS,
    IMAGE_SUFFIXES,
    as_captions,
    as_extra,
    as_label,
    first_of,
    from_json,
)
from conversion.ingest.files import Place, find_files, unreadable
from conversion.ingest.plans import img2dataset_count, parts_of
from conversion.ingest.rows import BAD_ROW, TRUNCATED, IngestOptions, Lost, Part, Plan, Row, Tally

_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_IMAGES = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)

Sample = dict[str, bytes]


def plan_webdataset(place: Place) -> Plan:
    """One part per tar.

    Raises:
        DataError: there is no tar.
    """
    found = find_files(place)
    tars = [file for file in found if file.name.lower().endswith(_SUFFIXES)]
    return parts_of(place, found, tars, kind="webdataset", what="tar files")


def read_webdataset(place: Place, part: Part, *, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    """The samples of a tar in order.

    A tar that is cut, or damaged between members, gives its whole samples and one lost row for what follows. If
    img2dataset's `_stats.json` lies beside it, the count of the lost is known. A member that is a link, a device or
    sparse has no content.

    Raises:
        DataError: the file cannot be opened.
    """
    read = 0
    damage: Exception | None = None
    cut: str | None = None
    sample: Sample = {}
    name = ""
    try:
        for found, suffix, content in _members(place, part.path, tally):
            # A second member with the same name and suffix begins a sample of its own, which is a duplicate key.
            if found != name or suffix in sample:
                if sample:
                    yield _row(name, sample, options, tally)
                    read += 1
                name, sample = found, {}
            if content is None:
                cut = found
                break
            sample[suffix] = content
    except _DAMAGE as error:
        damage = error
    # Of a damaged tar the last sample counts as whole if nothing of it was cut and it has a picture and a text.
    broken = cut is not None or damage is not None
    if sample and (not broken or (cut is None and _is_whole(sample))):
        yield _row(name, sample, options, tally)
        read, name = read + 1, ""
    expected = img2dataset_count(place, part)
    if broken or (expected is not None and expected > read):
        told = "the data of a member are cut" if cut else "fewer samples than its _stats.json says"
        yield Lost(
            reason=TRUNCATED,
            key=cut or name or part.source,
            detail=str(damage or told),
            count=1 if expected is None else max(expected - read, 1),
            rest_unknown=expected is None,
        )


def _members(place: Place, path: str, tally: Tally) -> Iterator[tuple[str, str, bytes | None]]:
    """(sample, suffix, content) of each file in the tar; content None where the file ends inside of it."""
    try:
        opened: Any = place.fs.open(path, "rb")
    except OSError as error:
        raise unreadable(path, error) from error
    with opened as raw:
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
                if not stem or (stem.startswith("__") and stem.endswith("__")):
                    tally.ignored_members += 1
                    continue
                yield f"{folder}/{stem}" if folder else stem, suffix.lower(), _content(tar, member, end)
            # The library takes a broken header for the end of the archive; the end is a block of zeros.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no end-of-archive mark at byte {tar.offset}")


def _open_tar(file: Any) -> tarfile.TarFile:
    with _damage_of("first header"):  # which is read here
        return tarfile.open(fileobj=file, mode="r:")


@contextlib.contextmanager
def _damage_of(what: str) -> Generator[None]:
    """Headers are whatever somebody wrote: sizes may be negative, or larger than any memory or file."""
    try:
        yield
    except (ValueError, OverflowError, MemoryError) as error:
        raise tarfile.ReadError(f"broken {what}: {error!r}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a seek to before the beginning
            raise
        raise tarfile.ReadError(f"broken {what}: {error}") from error


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    with _damage_of(f"header at byte {tar.offset}"):
        member = tar.next()
    if member is not None and (member.size < 0 or tar.offset <= member.offset):
        raise tarfile.ReadError(f"broken header at byte {member.offset}: a size of {member.size}")
    cast(Any, tar).members = []  # it would keep a description of every member
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


def _is_whole(sample: Sample) -> bool:
    return any(name in sample for name in _IMAGES) and any(name in sample for name in ("txt", "cls"))


def _row(key: str, sample: Sample, options: IngestOptions, tally: Tally) -> Row | Lost:
    fields: Mapping[str, object] = {}
    if "json" in sample:
        try:
            parsed = from_json(sample["json"])
        except ValueError as error:
            # The sidecar matters only if something is wanted from it.
            if options.caption_column or options.label_column or options.key_column or options.keep:
                return Lost(reason=BAD_ROW, key=key, detail=f"its JSON: {error}")
        else:
            fields = cast(dict[str, object], parsed) if isinstance(parsed, dict) else {}
    tally.names |= {*sample, *fields}
    names = _IMAGES if options.image_column is None else (options.image_column,)
    image = next((sample[name] for name in names if name in sample), None)
    captions = _captions(sample, fields, options)
    label: int | None = None
    if options.label_column is not None:
        label = as_label(sample.get(options.label_column, fields.get(options.label_column)))
    elif "cls" in sample:
        label = as_label(sample["cls"])
    wanted = fields.get(options.key_column) if options.key_column else None
    held = {**sample, **fields}
    extra: dict[str, ExtraValue] = {name: as_extra(held[name]) for name in options.keep if name in held}
    return Row(key=key if wanted is None else str(wanted), image=image, captions=captions, label=label, extra=extra)


def _captions(sample: Sample, fields: Mapping[str, object], options: IngestOptions) -> tuple[str | bytes | None, ...]:
    if options.caption_column is not None:
        return as_captions(sample.get(options.caption_column, fields.get(options.caption_column)))
    if "txt" in sample:
        return (sample["txt"],)
    column = first_of(fields, CAPTION_COLUMNS)
    return as_captions(fields[column]) if column is not None else ()
