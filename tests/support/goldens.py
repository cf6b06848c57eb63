"""Recorded numbers of the reference: their place, and how tests read them.

The environment variable ``CLIPA_EQX_GOLDEN`` replaces ``tests/golden``; only then may a top-level group be absent,
and its tests are skipped. Without the variable a missing group is an error.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.paths import ROOT

_VARIABLE = "CLIPA_EQX_GOLDEN"
DEFAULT = ROOT / "tests" / "golden"


def root() -> Path:
    return Path(os.environ[_VARIABLE]) if os.environ.get(_VARIABLE) else DEFAULT


def require(group: str) -> None:
    """Call at the top of a golden test module: skips it only where another recording lacks the whole group."""
    if (root() / group).is_dir():
        return
    if os.environ.get(_VARIABLE):
        pytest.skip(f"{root()} has no group {group!r}", allow_module_level=True)
    raise FileNotFoundError(f"golden group {group!r} is missing under {root()}")


def path(name: str) -> Path:
    found = root() / name
    if not found.exists():
        raise FileNotFoundError(f"golden file {name!r} is missing under {root()}")
    return found


def names(pattern: str) -> list[str]:
    """Names relative to the root of the files that match a glob pattern, sorted."""
    return sorted(str(p.relative_to(root())) for p in root().glob(pattern))


@functools.cache
def load_json(name: str) -> Any:
    return json.loads(path(name).read_text())


@functools.cache
def load_npz(name: str) -> dict[str, np.ndarray]:
    with np.load(path(name), allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries whose names start with ``prefix``, without it."""
    return {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}
