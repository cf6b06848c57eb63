"""The version of this package, and the commit of the clone that it runs from."""

import functools
import importlib.metadata
import shutil
import subprocess
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 10.0


@functools.cache
def code_version() -> dict[str, Any]:
    """The installed ``version`` and, in a clone, its ``commit`` and whether the package was ``changed`` since.

    ``version`` is None for a clone that was never installed; ``commit`` and ``changed`` are None outside of a clone,
    without git, and where git refuses to read the clone.
    """
    try:
        version = importlib.metadata.version("clipa_eqx")
    except importlib.metadata.PackageNotFoundError:
        version = None
    commit = _git("rev-parse", "HEAD")
    status = None if commit is None else _git("status", "--porcelain", "--", "clipa_eqx")
    return {"version": version, "commit": commit, "changed": None if status is None else bool(status)}


def _git(*arguments: str) -> str | None:
    program = shutil.which("git")
    # An installed package may be inside of another repository, whose commit says nothing.
    if program is None or not (_ROOT / ".git").exists():
        return None
    try:
        found = subprocess.run(
            [program, "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
