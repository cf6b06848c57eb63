"""Webdataset tars: members that share a name up to its first dot are one sample."""

import contextlib
import errno
import gzip
import io
import tarfile
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, cast

from clipa_eqx.data.records import ExtraValue
from conversion.records.files import Place, find_files, unreadable
from conversion.records.rows import BAD_ROW, TRUNCATED, Columns, IngestOptions, Lost, Part, Plan, Row, Tally
from conversion.records.sources.columns import (
    CAPTION_COLUMNS,
    IMAGE_SUFFIXES,
    as_captions,
    as_extra,
    as_label,
    check_kept,
    choose_column,
    from_json,
)
from conversion.records.sources.plans import Damaged, first_rows, img2dataset_count, parts_of, with_columns

_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_LABEL = ".cls"
_IMAGES = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)

Sample = dict[str, bytes]


def plan_webdataset(place: Place, *, options: IngestOptions) -> Plan:
    """One part per tar.

    Raises:
        DataError: there is no tar, or the first samples lack a column.
    """
    found = find_files(place)
    tars = [file for file in found if file.name.lower().endswith(_SUFFIXES)]
    plan = parts_of(place, found, tars, kind="webdataset", what="tar files")
    samples = (sample for _, sample in first_rows(plan.parts, lambda part: _samples(place, part.path, Tally())))
    return with_columns(plan, _choose(samples, options=options, where=f"the first samples of {place.url}"))


def _choose(samples: Iterable[Sample], *, options: IngestOptions, where: str) -> Columns:
    """Members are named with a dot, fields of the JSON member without; one asked for is a member before a field."""
    members: dict[str, None] = {}
    fields: dict[str, None] = {}
    several = False
    for sample in samples:
        several |= sum(name in sample for name in _IMAGES) > 1
        members.update({f".{suffix}": None for suffix in sample})
        with contextlib.suppress(ValueError):
            fields.update({name: None for name in _fields(sample) if not name.startswith(".")})
    names = members | fields
    if not names:
        return Columns()

    def asked(name: str | None) -> str | None:
        return f".{name}" if name is not None and f".{name}" in members else name

    check_kept({*(name[1:] for name in members), *fields}, options=options, where=where)
    image = choose_column(asked(options.image_column), members, IMAGE_SUFFIXES, what="image", where=where, needed=True)
    return Columns(
        # Suffixes of pictures are formats of one thing, unless a sample holds two, such as a picture and its mask.
        image=image if several or options.image_column else None,
        caption=choose_column(
            asked(options.caption_column),
            names,
            (".txt", *CAPTION_COLUMNS),
            what="caption",
            where=where,
            needed=options.label_column is None,
        ),
        key=choose_column(options.key_column, fields, (), what="key", where=where),
        label=choose_column(asked(options.label_column), names, (_LABEL,), what="label", where=where),
    )


def read_webdataset(place: Place, part: Part, *, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    """The samples of a tar in order.

    A tar that is cut, or damaged between members, gives its whole samples and one lost row for what follows. If
    img2dataset's `_stats.json` lies beside it, the count of the lost is known. A member that is a link, a device or
    sparse has no content.

    Raises:
        DataError: the file cannot be opened.
    """
    read = 0
    damage: Damaged | None = None
    try:
        for name, sample in _samples(place, part.path, tally):
            yield _row(name, sample, part.columns, options)
            read += 1
    except Damaged as error:
        damage = error
    expected = img2dataset_count(place, part)
    if damage is not None or (expected is not None and expected > read):
        yield Lost(
            reason=TRUNCATED,
            key=(damage and damage.key) or part.source,
            detail=str(damage or "fewer samples than its _stats.json says"),
            count=1 if expected is None else max(expected - read, 1),
            rest_unknown=expected is None,
        )


def _samples(place: Place, path: str, tally: Tally) -> Iterator[tuple[str, Sample]]:
    """The whole samples, each under its name.

    Raises:
        Damaged: what follows is not whole.
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
        # The last sample counts as whole if nothing of it was cut and it has a picture and a text.
        if _is_whole(sample):
            yield name, sample
            name = ""
        raise Damaged(str(error), key=name) from error
    if sample:
        yield name, sample


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
    except (ValueError, TypeError, LookupError, ArithmeticError, MemoryError, RecursionError) as error:
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


def _fields(sample: Sample) -> Mapping[str, object]:
    """Those of the JSON member; ValueError if it is broken."""
    parsed = from_json(sample["json"]) if "json" in sample else None
    return cast(dict[str, object], parsed) if isinstance(parsed, dict) else {}


def _row(key: str, sample: Sample, columns: Columns, options: IngestOptions) -> Row | Lost:
    fields: Mapping[str, object] = {}
    try:
        fields = _fields(sample)
    except ValueError as error:
        # The sidecar matters only if something is wanted from it.
        if options.keep or not all(_is_member(name) for name in (columns.caption, columns.label, columns.key) if name):
            return Lost(reason=BAD_ROW, key=key, detail=f"its JSON: {error}")

    def value(name: str | None) -> object:
        return None if name is None else sample.get(name[1:]) if _is_member(name) else fields.get(name)

    suffixes = _IMAGES if columns.image is None else (columns.image[1:],)
    wanted = value(columns.key)
    held = {**sample, **fields}
    extra: dict[str, ExtraValue] = {name: as_extra(held[name]) for name in options.keep if name in held}
    return Row(
        key=key if wanted is None else str(wanted),
        image=next((sample[name] for name in suffixes if name in sample), None),
        captions=() if (text := value(columns.caption)) is None else as_captions(text),
        label=as_label(value(columns.label or _LABEL)),
        extra=extra,
    )


def _is_member(name: str) -> bool:
    return name.startswith(".")
