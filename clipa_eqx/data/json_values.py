"""Checks of parsed JSON: each returns the value in its type, or reports where it is and what it is."""

from typing import cast

from clipa_eqx.errors import DataError


def as_map(value: object, where: str) -> dict[str, object]:
    """A copy of a JSON map. Raises DataError for anything else."""
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a map, got {value!r}")
    return dict(cast(dict[str, object], value))  # JSON maps have text keys


def as_list(value: object, where: str) -> list[object]:
    """A JSON list. Raises DataError for anything else."""
    if not isinstance(value, list):
        raise DataError(f"{where} must be a list, got {value!r}")
    return cast(list[object], value)


def as_int(value: object, where: str) -> int:
    """A whole number. Raises DataError for anything else, also for true, false and 1.0."""
    if type(value) is not int:
        raise DataError(f"{where} must be a whole number, got {value!r}")
    return value


def as_text(value: object, where: str) -> str:
    """A text. Raises DataError for anything else."""
    if not isinstance(value, str):
        raise DataError(f"{where} must be a text, got {value!r}")
    return value
