"""Samples of files that share a name: members of a tar, or images with texts next to them; their columns and rows."""

import contextlib
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import cast

from clipa_eqx.errors import DataError
from conversion.records.options import IngestOptions
from conversion.records.rows import BAD_ROW, Columns, Image, Lost, Row, shortened
from conversion.records.sources.columns import (
    CAPTION_COLUMNS,
    IMAGE_SUFFIXES,
    check_values,
    choose_captions,
    choose_column,
    choose_subset,
    values_to_read,
)
from conversion.records.sources.value_types import check_types
from conversion.records.sources.values import as_key, as_labels, captions_of, from_json, kept_values, npy_labels

IMAGES = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
"""Suffixes of images, without their dot."""

Sample = dict[str, bytes]  # content by suffix, without its first dot

_LABEL = ".cls"
_VECTOR = ".npy"  # the labels of an image, as CLIP_benchmark writes several
_COMPRESSED = ".gz"
_MOST_UNPACKED = 2**26  # bytes
_PEEK = 4096  # bytes of a member that show its type


def decompressed(sample: Sample) -> Sample:
    """The sample with members such as ``.txt.gz`` decompressed, as webdataset reads them.

    Members that are damaged, or larger than 64 MiB then, stay as they are.
    """
    if not any(suffix.endswith(_COMPRESSED) for suffix in sample):
        return sample
    found = dict(sample)
    for suffix, content in sample.items():
        plain = suffix.removesuffix(_COMPRESSED)
        if plain not in sample and (unpacked := _decompress(content)) is not None:
            del found[suffix]
            found[plain] = unpacked
    return found


def _decompress(content: bytes) -> bytes | None:
    """The content of a member in gzip's format; None if it is damaged or too large."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        plain = unpacker.decompress(content, _MOST_UNPACKED)
    except zlib.error:
        return None
    return plain if unpacker.eof and not unpacker.unused_data else None


def peek(sample: Sample) -> Sample:
    """The sample with only the first bytes of its members, except of its JSON and vectors."""
    return {
        suffix: content if suffix in ("json", _VECTOR[1:]) else content[:_PEEK] for suffix, content in sample.items()
    }


def choose_members(samples: Iterator[Sample], *, options: IngestOptions, where: str) -> Columns:
    """Choose columns: members are named with a dot, fields of the JSON member without.

    A name that was asked for is looked up among members first, then among fields.
    """
    members: dict[str, None] = {}
    fields: dict[str, None] = {}
    first: list[Mapping[str, object]] = []
    several = False
    for sample in samples:
        several |= sum(name in sample for name in IMAGES) > 1
        found: dict[str, object] = {
            f".{suffix}": None if suffix in IMAGES else content for suffix, content in sample.items()
        }
        members.update(dict.fromkeys(found))
        if _VECTOR in found:
            found[_VECTOR] = list(_labels(found[_VECTOR], _VECTOR))
        with contextlib.suppress(ValueError):
            described = {name: value for name, value in _fields(sample).items() if not name.startswith(".")}
            fields.update(dict.fromkeys(described))
            found = {**described, **found}
        first.append(found)
    names = members | fields
    if not names:
        return Columns()

    def asked(name: str | None) -> str | None:
        return None if name is None else member_of(name)

    def member_of(name: str) -> str:
        return f".{name}" if f".{name}" in members else name

    captions = options.caption_column
    plain = dict.fromkeys((*(name[1:] for name in members), *fields))
    check_values(plain, options=options, where=where)
    subset = choose_subset(plain, options=options, where=where)
    if options.image_column is None:
        _check_dots(members, where=where)
    image = choose_column(asked(options.image_column), members, IMAGE_SUFFIXES, what="image", where=where, needed=True)
    columns = Columns(
        # Suffixes of images are formats of one thing, unless a sample holds two, such as an image and its mask.
        image=image if several or options.image_column else None,
        caption=choose_captions(
            tuple(map(member_of, captions)) if isinstance(captions, tuple) else asked(captions),
            names,
            (".txt", *CAPTION_COLUMNS, ".text", ".caption"),
            where=where,
            needed=options.label_column is None,
        ),
        key=choose_column(options.key_column, fields, (), what="key", where=where),
        label=choose_column(asked(options.label_column), names, (_LABEL,), what="label", where=where),
        subset=subset,
        values=values_to_read(options, subset),
    )
    check_types(first, columns, where=where)
    return columns


def _check_dots(members: Collection[str], *, where: str) -> None:
    """Refuse samples of which images only have suffixes of several parts: these may be parts of names instead.

    Raises:
        DataError: there are such images, and none with the suffix of an image alone.
    """
    dotted = [name for name in members if name.count(".") > 1 and name.endswith(IMAGE_SUFFIXES)]
    if dotted and not any(name in IMAGE_SUFFIXES for name in members):
        shown = ", ".join(shortened(name, 80) for name in dotted[:5]) + (", ..." if len(dotted) > 5 else "")
        raise DataError(
            f"{where}: the name of a sample ends at its first dot, so the suffixes of images are {shown}; choose one "
            f"with --image-column {shortened(dotted[0][1:], 80)} (and --caption-column), or rename the members if the "
            "dots belong to the names"
        )


def row_of(key: str, sample: Sample, columns: Columns, *, is_by_line: bool = False) -> Row | Lost:
    """The row of a sample.

    Args:
        key: the name of the sample, which is the key unless a column is chosen.
        is_by_line: whether each line of a text member is a caption.
    """
    fields: Mapping[str, object] = {}
    try:
        fields = _fields(sample)
    except ValueError as error:
        # The JSON member matters only if something is wanted from it.
        if columns.values or not all(
            _is_member(name) for name in (*columns.captions, columns.label, columns.key) if name
        ):
            return Lost(reason=BAD_ROW, key=key, detail=f"its JSON: {error}")

    def value(name: str | None) -> object:
        return None if name is None else sample.get(name[1:]) if _is_member(name) else fields.get(name)

    def text(name: str) -> object:
        found = value(name)
        if is_by_line and isinstance(found, bytes):
            return [line for line in found.splitlines() if line.strip()] or found
        return found

    texts = {name: found for name in columns.captions if (found := text(name)) is not None}
    wanted = as_key(value(columns.key))
    return Row(
        key=key if wanted is None else wanted,
        image=image_of(sample, columns.image),
        captions=captions_of(texts, columns.captions),
        labels=_labels(value(columns.label), columns.label),
        extra=kept_values({**sample, **fields}, columns.values),
    )


def image_of(sample: Sample, column: str | None) -> Image:
    """The image of a sample: that of the column, or the first with the suffix of an image; or why there is none."""
    suffixes = IMAGES if column is None else (column[1:],)
    return next((sample[name] for name in suffixes if name in sample), _why_no_image(sample, column))


def _why_no_image(sample: Sample, column: str | None) -> str:
    dots = "; the name of a sample ends at its first dot" if any("." in suffix for suffix in sample) else ""
    return f"no {column or 'image'} among: {', '.join(sorted(sample))}{dots}"


def _labels(value: object, column: str | None) -> tuple[int | str, ...]:
    if column == _VECTOR and isinstance(value, bytes):
        try:
            return tuple(npy_labels(value))
        except (ValueError, EOFError):
            return ()
    return as_labels(value)


def _fields(sample: Sample) -> Mapping[str, object]:
    """The fields of the JSON member. Raises ``ValueError`` if it is broken."""
    parsed = from_json(sample["json"]) if "json" in sample else None
    return cast(dict[str, object], parsed) if isinstance(parsed, dict) else {}


def _is_member(name: str) -> bool:
    return name.startswith(".")
