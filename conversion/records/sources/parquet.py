"""Source ``parquet``: tables with images in a column or next to the table, as tools write them."""

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

from clipa_eqx.errors import DataError
from conversion.records.listing import FoundFile
from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.rows import DOWNLOAD_FAILED, Columns, Image, Lost, Part, Plan, Row, Tally
from conversion.records.sources.arrow import class_names_of, holds_bytes
from conversion.records.sources.columns import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    KEY_COLUMNS,
    PATH_COLUMNS,
    check_values,
    choose_captions,
    choose_column,
    choose_subset,
    first_of,
    is_image_name,
    values_to_read,
)
from conversion.records.sources.damage import Damaged, with_lost_rest
from conversion.records.sources.images import read_image
from conversion.records.sources.planning import Choice, plan_files
from conversion.records.sources.saved_datasets import notes, without_caches
from conversion.records.sources.source import Source, SourceFiles
from conversion.records.sources.split_column import COLUMN, check_split, count_splits
from conversion.records.sources.splits import ChosenSplit, check_one_set, choose_split, has_splits
from conversion.records.sources.tables import SUFFIXES, open_table
from conversion.records.sources.value_types import check_types
from conversion.records.sources.values import as_key, as_labels, captions_of, kept_values

_ROWS_TO_CHECK = 64
_STATUS = "status"
_ENCODINGS = ("jpg", "png", "webp")  # the formats that img2dataset encodes to


class _FirstRows(NamedTuple):
    """The start of a table: its schema, the chosen columns, and rows without their images."""

    source: str
    schema: Any
    columns: Columns
    rows: list[Mapping[str, object]]


def _plan(files: SourceFiles, options: IngestOptions) -> Plan:
    """Plan one part per table of a split; columns and class names are those of the first table with rows.

    Raises:
        DataError: several splits and none chosen, several data sets, missing shards, columns that do not fit, or tables
            without the column of splits that others have.
    """
    place = files.place
    files = without_caches(files)
    in_column = {} if has_splits(files) else count_splits(files, options)
    if in_column:
        check_split(in_column, options, url=place.url)
        split = ChosenSplit(files, {} if options.split is None else {"split": options.split})
    else:
        split = choose_split(files, options, rows=partial(_count, place))
        files = split.files
    check_one_set(files)

    def choose(tables: Iterator[_FirstRows]) -> Choice:
        table = next(tables, None)
        if table is None:
            return Choice()
        types = {field.name: f"values of type {field.type}" for field in table.schema}
        check_types(table.rows, table.columns, where=table.source, types=types)
        return Choice(table.columns, class_names_of(table.schema, options.label_column))

    # Images next to the tables are rows of the tables, not files left out.
    about = [*(file for file in files.found if is_image_name(file.name)), *notes(files)]
    plan = plan_files(
        files, first=lambda part: _first_rows(place, part, options), choose=choose, about=about, info=split.info
    )
    if not in_column or options.split is None:
        return plan
    parts = tuple(replace(part, columns=replace(part.columns, split=COLUMN)) for part in plan.parts)
    return replace(plan, parts=parts, columns={**plan.columns, "split": COLUMN})


def _first_rows(place: Place, part: Part, options: IngestOptions) -> Iterator[_FirstRows]:
    """Choose the columns of a table; nothing if it has no rows or is damaged, which shows again when it is read."""
    found: _FirstRows | None = None
    count: int | None = None
    with contextlib.suppress(Damaged), open_table(place, part.path, is_read=False) as table:
        count = table.length
        if count != 0:
            columns = _choose(table.schema, place, part, options)
            found = _FirstRows(part.source, table.schema, columns, [])
            # The type of images is known from the schema.
            rows = table.rows(sorted(_names(replace(columns, image=None))))
            for row in itertools.islice(rows, _ROWS_TO_CHECK):
                found.rows.append(row)  # those before damage count
    if found is not None and (count or found.rows):
        yield found


def read_schema(place: Place, path: str) -> Any:
    """The schema of a table; None if it has no rows or is damaged, which shows again when it is read."""
    with contextlib.suppress(Damaged), open_table(place, path, is_read=False) as table:
        return table.schema if table.length != 0 else None
    return None


def _count(place: Place, file: FoundFile) -> int | None:
    """Number of rows of a table, if its file says it and is not remote."""
    with contextlib.suppress(Damaged):
        if place.is_local:
            with open_table(place, file.path) as table:
                return table.length
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
    subset = choose_subset(names, options=options, where=where)
    columns = Columns(
        image=image,
        path=path,
        caption=choose_captions(options.caption_column, names, CAPTION_COLUMNS, where=where, needed=needed),
        key=key,
        label=choose_column(options.label_column, names, (), what="label", where=where),
        subset=subset,
        values=values_to_read(options, subset),
    )
    check_values(names, options=options, where=where)
    if repeated := sorted(_repeated(schema) & {*_names(columns), *columns.values}):
        raise DataError(
            f"{where} has two columns named {repeated[0]!r}, and it is not clear which is meant; rename one, or choose "
            "others with --image-column, --caption-column or --key-column"
        )
    return columns


def _names(columns: Columns) -> set[str]:
    return {
        name
        for name in (columns.image, columns.path, *columns.captions, columns.key, columns.label, columns.split)
        if name
    }


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
    split = part.columns.split
    chosen = {name.encode() for name in (options.split or "").split(",")}
    try:
        with open_table(place, part.path) as table:
            wanted = {*_names(part.columns), *part.columns.values, _STATUS} - _repeated(table.schema)
            present = sorted(wanted & set(table.schema.names))
            for index, fields in enumerate(table.rows(present)):
                if split is None or fields.get(split) in chosen:
                    yield _row(place, part, fields, index=index, options=options)
    except Damaged as error:
        # The file knows the number of its rows, not of those of a split.
        error.expected = error.expected if split is None else None
        raise


def _row(place: Place, part: Part, fields: Mapping[str, object], *, index: int, options: IngestOptions) -> Row | Lost:
    columns = part.columns
    key = as_key(fields.get(columns.key or ""))
    name = f"{part.source}/{index:08d}" if key is None else key
    shown = name if isinstance(name, str) else name.decode(errors="backslashreplace")
    status = fields.get(_STATUS)
    extra = kept_values(fields, columns.values)
    if isinstance(status, bytes) and status.startswith(b"failed"):
        detail = status.decode(errors="backslashreplace")
        return Lost(reason=DOWNLOAD_FAILED, key=shown, detail=detail, extra=extra)
    return Row(
        key=name,
        image=_image(place, part, fields, key=shown, options=options),
        captions=captions_of(fields, columns.captions),
        labels=as_labels(fields.get(columns.label or "")),
        extra=extra,
    )


def _image(
    place: Place, part: Part, fields: Mapping[str, object], *, key: str, options: IngestOptions
) -> Image | Callable[[], Image]:
    columns = part.columns
    if part.labels_only:
        return None
    if columns.image is None:
        if columns.path is None:
            return partial(_image_of_key, place, part, key)
        path = fields.get(columns.path)
        if not isinstance(path, bytes) or not path:
            return None
        return partial(read_image, place, os.fsdecode(path), part=part, images=options.images)
    value = fields.get(columns.image)
    if isinstance(value, dict):
        nested = cast(dict[str, object], value)
        value, path = nested.get("bytes"), nested.get("path")
        if value is None and isinstance(path, bytes):
            return partial(read_image, place, os.fsdecode(path), part=part, images=options.images)
    return value if isinstance(value, bytes) else None


def _image_of_key(place: Place, part: Part, key: str) -> Image:
    found = (read_image(place, f"{_folder_of(part)}/{key}.{suffix}") for suffix in _ENCODINGS)
    return next((image for image in found if isinstance(image, bytes)), None)


def _folder_of(part: Part) -> str:
    """The folder with the images of a table in img2dataset's output format ``files``."""
    return part.path.rpartition(".")[0]


PARQUET = Source(
    help="tables with images in them, next to them or at paths: Parquet, or Arrow of `datasets` (extra parquet)",
    files=".parquet or .arrow files",
    owns=lambda name: name.lower().endswith(SUFFIXES),
    plan=_plan,
    read=_read,
    marks=SUFFIXES,
    package="pyarrow",
    has_prefix=True,
    has_images=True,
    split_help="train, test, ...; A,B for several",
)
