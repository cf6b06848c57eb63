"""The command of a conversion as files record it: everything that decides the output, and must be equal to resume."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from conversion.records.options import IngestOptions
from conversion.records.rows import Plan, printable

Command = Mapping[str, object]


def command_of(
    kind: str, source: str, options: IngestOptions, plan: Plan, *, subset_sha256: str | None = None
) -> Command:
    """The command in plain JSON: kind, source, changed options, columns, number of parts, hash over the source.

    Args:
        options: those of the user.
        subset_sha256: hash of the file of a subset.
    """
    files = hashlib.sha256()
    files.update(json.dumps([plan.digest, plan.class_names]).encode())
    for part in plan.parts:
        files.update(f"{part.path}\0{part.source}\0{part.size}\0{part.start}\0".encode(errors="backslashreplace"))
    settings: dict[str, Any] = dataclasses.asdict(options)
    changed = {name: value for name, value in settings.items() if value != getattr(IngestOptions(), name)}
    changed = {name: printable(value) if isinstance(value, str) else value for name, value in changed.items()}
    return {
        "kind": kind,
        "source": printable(source),
        **changed,
        **({"subset_sha256": subset_sha256} if subset_sha256 else {}),
        **({"columns": plan.columns} if plan.columns else {}),
        "parts": len(plan.parts),
        "source_files": files.hexdigest(),
    }


def differences(old: Command | None, new: Command) -> str:
    """Describe how two commands differ. An ``old`` of None was not recorded by this program."""
    if old is None:
        return "not written by this program"
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    hashes = ("source_files", "subset_sha256")
    shown = [f"{name} was {old.get(name)!r}, now {new.get(name)!r}" for name in changed if name not in hashes]
    if "subset_sha256" in changed and "subset" not in changed:
        shown.append("the file of the subset has changed")
    if "source_files" in changed and "source" not in changed:  # the hash also covers how the source was written
        shown.append("the source has changed")
    return "; ".join(shown) or "by the same command"


def describe_columns(columns: Mapping[str, object]) -> str:
    """The chosen columns in one line."""
    shown = list(columns.items())[:5]
    uses = ", ".join(f"{use} from {name!r}" for use, name in shown if not isinstance(name, dict))
    lists = (f"{name} ({describe_columns(one)})" for name, one in shown if isinstance(one, dict))
    return uses + "; ".join(lists) + ("; ..." if len(columns) > len(shown) else "")
