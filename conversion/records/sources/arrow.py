"""Values of Arrow tables as Python has them, with texts as bytes, so that a bad text affects only its own row."""

import importlib
from typing import Any


def rows_of(batch: Any) -> list[dict[str, object]]:
    """The rows of a record batch as maps from column to value. Texts at any depth are bytes."""
    if not batch.num_columns:
        return [{} for _ in range(batch.num_rows)]
    columns = [_values(column.cast(_with_bytes(column.type))) for column in batch.columns]
    return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def holds_bytes(kind: Any) -> bool:
    """Check whether a column of this type can hold images: bytes, or maps with ``bytes``."""
    types = pyarrow("types")
    if types.is_dictionary(kind):
        return holds_bytes(kind.value_type)
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


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
