"""JSON files that hold one object."""

import json
from pathlib import Path
from typing import Any, cast

from clipa_eqx.errors import ClipaError


def has_format(path: Path, start: str) -> bool:
    """Whether a JSON file holds an object whose ``format`` starts like this."""
    try:
        found = read_json_object(path, error=ClipaError, hint="")
    except ClipaError:
        return False
    return str(found.get("format")).startswith(start)


def read_json_object(path: Path, *, error: type[ClipaError], hint: str) -> dict[str, Any]:
    """Read the object that a JSON file holds.

    Args:
        path: a UTF-8 file.
        error: the class to raise.
        hint: the end of the message: what the file should be, or what to do.

    Raises:
        error: the file cannot be read, is not JSON, or holds another value than an object.
    """
    try:
        found: object = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as cause:
        raise error(f"{path} cannot be read ({cause}); {hint}") from cause
    if not isinstance(found, dict):
        raise error(f"{path} holds {type(found).__name__}, expected an object; {hint}")
    return cast("dict[str, Any]", found)
