"""Parquet tables with pictures in a column or beside the table, as img2dataset and the Hugging Face hub write them."""

import importlib
import importlib.util
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from clipa_eqx.data.records import ExtraValue
from clipa_eqx.errors import DataError
from conversion.records.files import Place, find_files, staged, unreadable
from conversion.records.rows import DOWNLOAD_FAILED, TRUNCATED, Columns, IngestOptions, Lost, Part, Plan, Row
from conversion.records.sources.columns import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    IMAGE_SUFFIXES,
    KEY_COLUMNS,
    PATH_COLUMNS,
    as_captions,
    as_extra,
    as_label,
    check_kept,
    choose_column,
    first_of,
    from_json,
)
from conversion.records.sources.images import read_picture
from conversion.records.sources.plans import digest_of, ignored_files, parts_of, with_columns

_ROWS_AT_ONCE = 64  # pictures of a few hundred kilobytes; bounds memory
_STATUS = "status"
_SUFFIXES = ("jpg", "png", "webp")  # what img2dataset encodes to


def plan_parquet(place: Place, *, options: IngestOptions) -> Plan:
    """One part per table; columns, and class names from the hub's own notes, are those of the first table with rows.

    Raises:
        DataError: there is no table, pyarrow is not installed, or that table does not have the columns.
    """
    found = find_files(place)
    tables = [file for file in found if file.name.lower().endswith(".parquet")]
    plan = parts_of(place, found, tables, kind="parquet", what=".parquet files")
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError("Parquet is read by pyarrow, which is not installed: pip install 'clipa_eqx[parquet]'")
    schemas = ((part, _read_schema(place, part)) for part in plan.parts)
    first, schema = next((found for found in schemas if found[1] is not None), (plan.parts[0], None))
    columns = Columns() if schema is None else _choose(schema, place, first, options)
    # Pictures beside the tables are rows of the tables, not files left out.
    pictures = [file for file in found if file.name.lower().endswith(IMAGE_SUFFIXES)]
    plan = Plan(
        parts=plan.parts,
        class_names=None if schema is None else _class_names(schema, options),
        info=ignored_files(set(found) - set(tables) - set(pictures)),
        digest=digest_of(pictures),
    )
    return with_columns(plan, columns)


def _read_schema(place: Place, part: Part) -> Any:
    """The schema of a table, None if it has no rows or is damaged, which shows again when it is read."""
    try:
        with place.fs.open(part.path, "rb") as opened:
            table = _pyarrow("parquet").ParquetFile(opened)
            return table.schema_arrow if table.metadata.num_rows else None
    except _pyarrow("").ArrowException:
        return None
    except OSError as error:
        if error.errno is None:  # as pyarrow has it for a broken file
            return None
        raise unreadable(part.path, error) from error


def _class_names(schema: Any, options: IngestOptions) -> tuple[str, ...] | None:
    try:
        content: Any = from_json((schema.metadata or {})[b"huggingface"])
        return tuple(str(name) for name in content["info"]["features"][options.label_column]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def read_parquet(place: Place, part: Part, *, options: IngestOptions) -> Iterator[Row | Lost]:
    """The rows of a table in order; rows that img2dataset failed to download are lost rows.

    The picture is a column of bytes (or of maps with `bytes`), a column of paths, or img2dataset's file
    `00012/KEY.jpg` beside `00012.parquet`. Of a damaged table the whole rows are read; how many it lacks is known
    unless its end is cut off, which makes it unreadable from the start. Columns that it lacks cost its rows.

    Raises:
        DataError: the file cannot be opened.
    """
    arrow, parquet = _pyarrow(""), _pyarrow("parquet")
    read, expected = 0, None
    damage: Exception | None = None
    with staged(place.fs, part.path) as path:
        try:
            with parquet.ParquetFile(path) as table:
                expected = int(table.metadata.num_rows)
                wanted = {*_names(part.columns), *options.keep, _STATUS} - _twice(table.schema_arrow)
                have = sorted(wanted & set(table.schema_arrow.names))
                for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=have):
                    for fields in cast(Sequence[Mapping[str, object]], _rows(batch)):
                        yield _row(place, part, fields, part.columns, index=read, options=options)
                        read += 1
        # A broken page raises ArrowInvalid, or OSError without a number.
        except (arrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise unreadable(part.path, error) from error
            damage = error
    if damage is not None:
        yield Lost(
            reason=TRUNCATED,
            key=part.source,
            detail=f"{type(damage).__name__}: {damage}",
            count=1 if expected is None else max(expected - read, 1),
            rest_unknown=expected is None,
        )


def _choose(schema: Any, place: Place, part: Part, options: IngestOptions) -> Columns:
    names: list[str] = list(schema.names)
    where = part.source
    holding = [field.name for field in schema if _holds_bytes(field.type)]
    asked = choose_column(options.image_column, names, (), what="image", where=where)
    image = (asked if asked in holding else None) if asked else first_of(holding, IMAGE_COLUMNS)
    key = choose_column(options.key_column, names, KEY_COLUMNS, what="key", where=where)
    path = None
    if image is None:
        are_beside = key is not None and place.fs.isdir(_beside(part))
        path = choose_column(asked, names, PATH_COLUMNS, what="image", where=where, needed=not are_beside)
    needed = options.label_column is None
    columns = Columns(
        image=image,
        path=path,
        caption=choose_column(
            options.caption_column, names, CAPTION_COLUMNS, what="caption", where=where, needed=needed
        ),
        key=key,
        label=choose_column(options.label_column, names, (), what="label", where=where),
    )
    check_kept(names, options=options, where=where)
    if twice := sorted(_twice(schema) & {*_names(columns), *options.keep}):
        raise DataError(
            f"{where} has two columns named {twice[0]!r}, and nothing tells which is meant; rename one, or choose "
            "others with --image-column, --caption-column or --key-column"
        )
    return columns


def _names(columns: Columns) -> set[str]:
    return {name for name in (columns.image, columns.path, columns.caption, columns.key, columns.label) if name}


def _twice(schema: Any) -> set[str]:
    """Names of several columns: to read one of them is to read any."""
    return {name for name, count in Counter(schema.names).items() if count > 1}


def _row(
    place: Place, part: Part, fields: Mapping[str, object], columns: Columns, *, index: int, options: IngestOptions
) -> Row | Lost:
    key = fields.get(columns.key or "")
    name = f"{part.source}/{index:08d}" if key is None else key if isinstance(key, bytes) else str(key)
    shown = name if isinstance(name, str) else name.decode(errors="backslashreplace")
    status = fields.get(_STATUS)
    if isinstance(status, bytes) and status.startswith(b"failed"):
        return Lost(reason=DOWNLOAD_FAILED, key=shown, detail=status.decode(errors="backslashreplace"))
    extra: dict[str, ExtraValue] = {name: as_extra(fields[name]) for name in options.keep if name in fields}
    return Row(
        key=name,
        image=_image(place, part, fields, columns, key=shown, options=options),
        captions=as_captions(fields.get(columns.caption or "", ())),
        label=as_label(fields.get(columns.label or "")),
        extra=extra,
    )


def _image(
    place: Place, part: Part, fields: Mapping[str, object], columns: Columns, *, key: str, options: IngestOptions
) -> bytes | str | None:
    if columns.image is None:
        if columns.path is None:
            found = (read_picture(place, f"{_beside(part)}/{key}.{suffix}") for suffix in _SUFFIXES)
            return next((image for image in found if isinstance(image, bytes)), None)
        path = fields.get(columns.path)
        if not isinstance(path, bytes) or not path:
            return None
        return read_picture(place, os.fsdecode(path), part=part, images=options.images)
    value = fields.get(columns.image)
    if isinstance(value, dict):
        nested = cast(dict[str, object], value)
        value, path = nested.get("bytes"), nested.get("path")
        if value is None and isinstance(path, bytes):
            return read_picture(place, os.fsdecode(path), part=part, images=options.images)
    return value if isinstance(value, bytes) else None


def _rows(batch: Any) -> list[dict[str, object]]:
    """The batch as maps, with texts as bytes, so that one text that is not UTF-8 concerns one row only."""
    if not batch.num_columns:
        return [{} for _ in range(batch.num_rows)]
    columns = [_values(column.cast(_with_bytes(column.type))) for column in batch.columns]
    return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: Any) -> list[object]:
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):  # a date that Python has no value for: the number that stands for it
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> object:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return getattr(scalar, "value", None)


def _with_bytes(kind: Any) -> Any:
    """The type with bytes for texts at any depth, and without dictionaries."""
    arrow, types = _pyarrow(""), _pyarrow("types")
    if types.is_dictionary(kind):
        return _with_bytes(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return arrow.large_binary()
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return arrow.large_list(_with_bytes(kind.value_type))
    if types.is_struct(kind):
        fields = (kind.field(i) for i in range(kind.num_fields))
        return arrow.struct([field.with_type(_with_bytes(field.type)) for field in fields])
    if types.is_map(kind):
        return arrow.map_(_with_bytes(kind.key_type), _with_bytes(kind.item_type))
    return kind


def _holds_bytes(kind: Any) -> bool:
    types = _pyarrow("types")
    if types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _beside(part: Part) -> str:
    return part.path.removesuffix(".parquet")


def _pyarrow(name: str) -> Any:
    return importlib.import_module(f"pyarrow.{name}" if name else "pyarrow")
