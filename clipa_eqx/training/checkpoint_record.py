"""The record in each checkpoint: its leaves, their checksums and the run. Read without Orbax, protected by a hash."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from clipa_eqx.errors import CheckpointError, DamageError
from clipa_eqx.saved.kinds import RECORD_FILE
from clipa_eqx.saved.leaf_file import Leaf

_FORMAT = 1
_LATER = ("arrays", "frozen")
"""Entries of a record that some checkpoints have."""

_KEYS_BEFORE_CHECKSUMS = {"format", "leaves", "about"}


class CheckpointRecord(NamedTuple):
    """The content of a record, and the checkpoint that it was read from or is written to.

    Attributes:
        leaves: shape and dtype of each stored leaf, by its path in a ``TrainState``.
        checksums: by the same paths; None if the checkpoint was written without.
        folder: the checkpoint.
        about: JSON that ``Checkpoints.save`` was given.
        arrays: name of the folder of the arrays, for a checkpoint that was written to a bucket; else None.
        frozen: sha256 of the record of the frozen leaves of the run, which the checkpoint lacks; None if it has all.
        sha256: hash of the record itself, as read; None in a record that was not read, or is of an early version.
    """

    leaves: dict[str, Leaf]
    checksums: dict[str, str] | None
    about: dict[str, Any]
    folder: Path
    arrays: str | None = None
    frozen: str | None = None
    sha256: str | None = None


def record_json(record: CheckpointRecord) -> dict[str, Any]:
    """The JSON object that ``read_checkpoint_record`` reads."""
    content = {
        "format": _FORMAT,
        "step": int(record.folder.name),
        "leaves": {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in record.leaves.items()},
        "checksums": record.checksums,
        "about": record.about,
        **{name: value for name in _LATER if (value := getattr(record, name)) is not None},
    }
    return {**content, "sha256": _hash(content)}


def read_checkpoint_record(folder: Path) -> CheckpointRecord:
    """The record of the checkpoint ``<run>/checkpoints/<step>``.

    Raises:
        DamageError: the record is missing or damaged.
        CheckpointError: a later version wrote it, or it may not be read.
    """
    try:
        text = (folder / RECORD_FILE).read_bytes()
    except PermissionError as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error}") from error
    except OSError as error:
        raise DamageError(f"{RECORD_FILE} cannot be read: {error}", folder=folder) from error
    return parsed_record(text, folder)


def parsed_record(text: bytes | None, folder: Path) -> CheckpointRecord:
    """The record of a checkpoint from the bytes of its file, None if it is not there; errors as above."""
    if text is None:
        raise DamageError(f"{RECORD_FILE} is not there", folder=folder)
    try:
        found: dict[str, Any] = json.loads(text.decode("utf-8"))
        content = {name: value for name, value in found.items() if name != "sha256"}
        is_as_written = found.get("sha256") == _hash(content) if "sha256" in found else None
    except (ValueError, AttributeError, RecursionError) as error:
        raise DamageError(f"{RECORD_FILE} cannot be read: {error}", folder=folder) from error
    if is_as_written is False:
        raise DamageError(f"{RECORD_FILE} has another sha256 than it was written with", folder=folder)
    if content.get("format") != _FORMAT:
        raise CheckpointError(
            f"checkpoint {folder} has format {content.get('format')!r}, this clipa_eqx reads {_FORMAT}; use the "
            "version that wrote it"
        )
    if is_as_written is None and content.keys() != _KEYS_BEFORE_CHECKSUMS:
        raise DamageError(f"{RECORD_FILE} has no sha256", folder=folder)
    if str(content.get("step", folder.name)) != folder.name:
        raise DamageError(f"it was saved as step {content['step']}", folder=folder)
    try:
        leaves = {path: Leaf(tuple(shape), jnp.dtype(dtype)) for path, (shape, dtype) in content["leaves"].items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise DamageError(f"{RECORD_FILE} has no list of leaves: {error}", folder=folder) from error
    later = {name: content.get(name) for name in _LATER}
    sums, about = content.get("checksums"), content["about"]
    return CheckpointRecord(leaves, sums, about, folder, **later, sha256=found.get("sha256"))


def committed_steps(checkpoints: Path) -> list[int]:
    """The steps in a folder of checkpoints, in order. Orbax gives a step's folder its name once it is committed."""
    entries = checkpoints.iterdir() if checkpoints.is_dir() else ()
    steps = (entry.name for entry in entries if entry.name.isdecimal() and entry.is_dir())
    return sorted(int(name) for name in steps if name == str(int(name)))


def newest_record(checkpoints: Path) -> CheckpointRecord | None:
    """The newest valid record in a folder of checkpoints; None if there is none."""
    for step in reversed(committed_steps(checkpoints)):
        try:
            return read_checkpoint_record(checkpoints / str(step))
        except CheckpointError:
            continue
    return None


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
