"""Values of Arrow tables as Python has them, with texts as bytes, so that a bad text affects only its own row."""

import importlib
from typing import Any

from conversion.records.sources.values import from_json


def rows_of(batch: Any) -> list[dict[str, object]]:
    """The rows of a record batch as maps from column to value. Texts at any depth are bytes."""
    if not batch.num_columns:
        return [{} for _ in range(batch.num_rows)]
    columns = [_values(column.cast(_with_bytes(column.type))) for column in batch.columns]
    return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def check_values(batch: Any) -> None:
    """Check that no value points outside its buffers, which Arrow files are trusted for when they are opened.

    Raises:
        ArrowException: one does. Reading it could end the process.
    """
    batch.validate()
    for column in batch.columns:
        # Texts count as bytes here: a bad text affects only its own row.
        (column if _has_dictionary(column.type) else column.view(_same_layout(column.type))).validate(full=True)


def holds_bytes(kind: Any) -> bool:
    """Check whether a column of this type can hold images: bytes, or maps with ``bytes``."""
    types = pyarrow("types")
    if types.is_dictionary(kind):
        return holds_bytes(kind.value_type)
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def class_names_of(schema: Any, column: str | None) -> tuple[str, ...] | None:
    """The class names of a column of labels, or of lists of labels, as the library ``datasets`` records them.

    They are in the metadata of the schema. A list is of type ``List`` or ``LargeList``, in versions before 4
    ``Sequence``, or it is a list with one entry.
    """
    try:
        content: Any = from_json((schema.metadata or {})[b"huggingface"])
        feature: Any = content["info"]["features"][column]
        while "names" not in feature:
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        return tuple(str(name) for name in feature["names"])
    except (LookupError, TypeError, ValueError):
        return None


def pyarrow(name: str) -> Any:
    """A module of the optional package: ``pyarrow``, or ``pyarrow.NAME``."""
    return importlib.import_module(f"pyarrow.{name}" if name else "pyarrow")


def _values(column: Any) -> list[object]:
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):  # a date outside Python's range: use the number behind it
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> object:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return getattr(scalar, "value", None)


def _with_bytes(kind: Any) -> Any:
    """The type with bytes instead of texts at any depth, and without dictionaries."""
    arrow, types = pyarrow(""), pyarrow("types")
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


def _has_dictionary(kind: Any) -> bool:
    types = pyarrow("types")
    inner = (kind.field(i).type for i in range(kind.num_fields))
    return bool(types.is_dictionary(kind)) or any(map(_has_dictionary, inner))


def _same_layout(kind: Any) -> Any:
    """The type with bytes instead of texts at any depth, of the same layout in memory."""
    arrow, types = pyarrow(""), pyarrow("types")
    if types.is_string(kind):
        return arrow.binary()
    if types.is_large_string(kind):
        return arrow.large_binary()
    if types.is_string_view(kind):
        return arrow.binary_view()
    if types.is_list(kind):
        return arrow.list_(_same_layout(kind.value_type))
    if types.is_large_list(kind):
        return arrow.large_list(_same_layout(kind.value_type))
    if types.is_fixed_size_list(kind):
        return arrow.list_(_same_layout(kind.value_type), kind.list_size)
    if types.is_struct(kind):
        fields = (kind.field(i) for i in range(kind.num_fields))
        return arrow.struct([field.with_type(_same_layout(field.type)) for field in fields])
    return kind
