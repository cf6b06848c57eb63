"""Source ``parquet``: tables with images in a column or next to the table, as img2dataset and the hub write them."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

from clipa_eqx.errors import DataError
from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.reading import local_copy, unreadable
from conversion.records.rows import DOWNLOAD_FAILED, Columns, Lost, Part, Plan, Row, Tally
from conversion.records.sources.arrow import holds_bytes, pyarrow, rows_of
from conversion.records.sources.columns import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    KEY_COLUMNS,
    PATH_COLUMNS,
    check_kept,
    choose_captions,
    choose_column,
    first_of,
    is_image_name,
)
from conversion.records.sources.damage import Damaged, with_lost_rest
from conversion.records.sources.images import read_image
from conversion.records.sources.planning import Choice, plan_files
from conversion.records.sources.source import Source, SourceFiles
from conversion.records.sources.value_types import check_types
from conversion.records.sources.values import as_key, as_labels, captions_of, from_json, kept_values

_ROWS_AT_ONCE = 64  # images of a few hundred kilobytes; bounds memory
_STATUS = "status"
_SUFFIXES = ("jpg", "png", "webp")  # the formats that img2dataset encodes to


class _Table(NamedTuple):
    part: Part
    schema: Any


def _plan(files: SourceFiles, options: IngestOptions) -> Plan:
    """Plan one part per table; columns, and class names from the hub's metadata, are those of the first with rows."""
    place = files.place

    def first(part: Part) -> Iterator[_Table]:
        schema = _read_schema(place, part)
        if schema is not None:
            yield _Table(part, schema)

    def choose(tables: Iterator[_Table]) -> Choice:
        table = next(tables, None)
        if table is None:
            return Choice()
        columns = _choose(table.schema, place, table.part, options)
        types = {field.name: f"values of type {field.type}" for field in table.schema}
        check_types(_first_values(place, table.part, columns), columns, where=table.part.source, types=types)
        return Choice(columns, _class_names(table.schema, options))

    # Images next to the tables are rows of the tables, not files left out.
    return plan_files(
        files, first=first, choose=choose, about=[file for file in files.found if is_image_name(file.name)]
    )


def _read_schema(place: Place, part: Part) -> Any:
    """The schema of a table; None if it has no rows or is damaged, which shows again when it is read."""
    try:
        with place.fs.open(part.path, "rb") as opened:
            table = pyarrow("parquet").ParquetFile(opened)
            return table.schema_arrow if table.metadata.num_rows else None
    except pyarrow("").ArrowException:
        return None
    except OSError as error:
        if error.errno is None:  # pyarrow's error for a broken file
            return None
        raise unreadable(part.path, error) from error


def _first_values(place: Place, part: Part, columns: Columns) -> list[dict[str, object]]:
    """The values of the first rows in the chosen columns, without images, whose type is known from the schema."""
    wanted = sorted(_names(replace(columns, image=None)))
    try:
        with place.fs.open(part.path, "rb") as opened, pyarrow("parquet").ParquetFile(opened) as table:
            return rows_of(next(table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted)))
    except (pyarrow("").ArrowException, OSError, StopIteration):  # shows again when the rows are read
        return []


def _class_names(schema: Any, options: IngestOptions) -> tuple[str, ...] | None:
    try:
        content: Any = from_json((schema.metadata or {})[b"huggingface"])
        return tuple(str(name) for name in content["info"]["features"][options.label_column]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _choose(schema: Any, place: Place, part: Part, options: IngestOptions) -> Columns:
    names: list[str] = list(schema.names)
    where = part.source
    holding = [field.name for field in schema if holds_bytes(field.type)]
    asked = choose_column(options.image_column, names, (), what="image", where=where)
    image = (asked if asked in holding else None) if asked else first_of(holding, IMAGE_COLUMNS)
    key = choose_column(options.key_column, names, KEY_COLUMNS, what="key", where=where)
    path = None
    if image is None:
        has_folder = key is not None and place.fs.isdir(_folder_of(part))
        path = choose_column(asked, names, PATH_COLUMNS, what="image", where=where, needed=not has_folder)
    needed = options.label_column is None
    columns = Columns(
        image=image,
        path=path,
        caption=choose_captions(options.caption_column, names, CAPTION_COLUMNS, where=where, needed=needed),
        key=key,
        label=choose_column(options.label_column, names, (), what="label", where=where),
    )
    check_kept(names, options=options, where=where)
    if repeated := sorted(_repeated(schema) & {*_names(columns), *options.keep}):
        raise DataError(
            f"{where} has two columns named {repeated[0]!r}, and it is not clear which is meant; rename one, or choose "
            "others with --image-column, --caption-column or --key-column"
        )
    return columns


def _names(columns: Columns) -> set[str]:
    return {name for name in (columns.image, columns.path, *columns.captions, columns.key, columns.label) if name}


def _repeated(schema: Any) -> set[str]:
    """Names that several columns share: reading one of them would read any."""
    return {name for name, count in Counter(schema.names).items() if count > 1}


def _read(place: Place, part: Part, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    """The rows of a table in order; rows that img2dataset failed to download are lost rows.

    The image is a column of bytes (or of maps with ``bytes``), a column of paths, or img2dataset's file
    ``00012/KEY.jpg`` next to ``00012.parquet``. A damaged table gives its complete rows; the number of missing rows is
    known unless the end of the file is cut off, which makes it unreadable from the start. A table that lacks a column
    loses its rows.
    """
    return with_lost_rest(_rows(place, part, options), part)


def _rows(place: Place, part: Part, options: IngestOptions) -> Iterator[Row | Lost]:
    expected: int | None = None
    index = 0
    with local_copy(place.fs, part.path) as path:
        try:
            with pyarrow("parquet").ParquetFile(path) as table:
                expected = int(table.metadata.num_rows)
                wanted = {*_names(part.columns), *options.keep, _STATUS} - _repeated(table.schema_arrow)
                present = sorted(wanted & set(table.schema_arrow.names))
                for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=present):
                    for fields in cast(Sequence[Mapping[str, object]], rows_of(batch)):
                        yield _row(place, part, fields, index=index, options=options)
                        index += 1
        # A broken page raises ArrowInvalid, or OSError without a number.
        except (pyarrow("").ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise unreadable(part.path, error) from error
            raise Damaged(f"{type(error).__name__}: {error}", expected=expected) from error


def _row(place: Place, part: Part, fields: Mapping[str, object], *, index: int, options: IngestOptions) -> Row | Lost:
    columns = part.columns
    key = as_key(fields.get(columns.key or ""))
    name = f"{part.source}/{index:08d}" if key is None else key
    shown = name if isinstance(name, str) else name.decode(errors="backslashreplace")
    status = fields.get(_STATUS)
    if isinstance(status, bytes) and status.startswith(b"failed"):
        return Lost(reason=DOWNLOAD_FAILED, key=shown, detail=status.decode(errors="backslashreplace"))
    return Row(
        key=name,
        image=_image(place, part, fields, key=shown, options=options),
        captions=captions_of(fields, columns.captions),
        labels=as_labels(fields.get(columns.label or "")),
        extra=kept_values(fields, options.keep),
    )


def _image(
    place: Place, part: Part, fields: Mapping[str, object], *, key: str, options: IngestOptions
) -> bytes | str | None:
    columns = part.columns
    if part.labels_only:
        return None
    if columns.image is None:
        if columns.path is None:
            found = (read_image(place, f"{_folder_of(part)}/{key}.{suffix}") for suffix in _SUFFIXES)
            return next((image for image in found if isinstance(image, bytes)), None)
        path = fields.get(columns.path)
        if not isinstance(path, bytes) or not path:
            return None
        return read_image(place, os.fsdecode(path), part=part, images=options.images)
    value = fields.get(columns.image)
    if isinstance(value, dict):
        nested = cast(dict[str, object], value)
        value, path = nested.get("bytes"), nested.get("path")
        if value is None and isinstance(path, bytes):
            return read_image(place, os.fsdecode(path), part=part, images=options.images)
    return value if isinstance(value, bytes) else None


def _folder_of(part: Part) -> str:
    """The folder with the images of a table in img2dataset's output format ``files``."""
    return part.path.removesuffix(".parquet")


PARQUET = Source(
    help="tables with images in them, next to them (img2dataset's `files`) or at paths (extra parquet)",
    files=".parquet files",
    owns=lambda name: name.lower().endswith(".parquet"),
    plan=_plan,
    read=_read,
    marks=(".parquet",),
    package="pyarrow",
    has_prefix=True,
    has_images=True,
)
