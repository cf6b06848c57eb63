"""The version of this package, and the commit of the clone that it runs from."""

import functools
import hashlib
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


@functools.cache
def code_digest() -> str:
    """The first 16 digits of a SHA-256 over names and contents of the Python files of this package.

    It needs neither git nor an installed package, and is equal on all hosts that have the same code.
    """
    package = Path(__file__).resolve().parents[1]
    found = hashlib.sha256()
    for file in sorted(package.rglob("*.py"), key=lambda file: file.relative_to(package).as_posix()):
        found.update(f"{file.relative_to(package).as_posix()}\n".encode())
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:16]
