"""Class names in a file: a JSON list, or one name a line."""

import json
from pathlib import Path
from typing import cast

from clipa_eqx.errors import DataError


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names in the order of their labels.

    Raises:
        DataError: the file cannot be read, or is no list of names.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        names: object = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"--class-names: {path} cannot be read: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in cast(list[object], names)):
        raise DataError(f"--class-names: {path} must be a list of names, in the order of the labels")
    return tuple(cast(list[str], names))
