"""New files and folders are written beside their place and renamed into it; what may be replaced, and what never is."""

import logging
import os
import re
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from clipa_eqx.errors import CheckpointError

_log = logging.getLogger(__name__)

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class FolderKind:
    """Folders that may be replaced if the user says so.

    Attributes:
        name: what an error calls one, as "saved model".
        files: relative paths of all files that are ever written to one; with anything else in it, none is replaced.
        is_one: whether a folder is of this kind by what its files say, not just by their names.
    """

    name: str
    files: frozenset[str]
    is_one: Callable[[Path], bool]


def real_path(path: Path) -> Path:
    """Absolute, without links: what lies behind a link is replaced, never the link.

    Raises:
        CheckpointError: links go around in a circle, or no such path can be.
    """
    try:
        real = path.resolve()
        real.exists()  # raises for a name that is too long
        return real
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} leads nowhere ({error}); give another name") from error


def beside(path: Path, kind: Literal["new", "old", "work"]) -> Path:
    """Where this process puts what is not yet, or no longer, ``path``."""
    return path.with_name(f".{path.name}.{kind}-{os.getpid()}")


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left beside ``path``; what one had moved aside, comes back if nothing is there."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(new|old|work)-(\d{{1,9}})")
    try:
        found = [(entry, m) for entry in path.parent.iterdir() if (m := pattern.fullmatch(entry.name))]
    except OSError:
        return
    # "old" first: once that is back, nothing is there to put "new" in the place of.
    for entry, match in sorted(found, key=lambda one: one[1][1] != "old"):
        process, is_old = int(match[2]), match[1] == "old"
        # Numbers of processes come back, in containers soon: what bears ours and is "old", lives between two renames
        # only, so an earlier one left it; the rest may be in use.
        if _is_alive(process) and not (is_old and process == os.getpid()):
            continue
        with suppress(OSError):
            if is_old and not os.path.lexists(path):
                _log.warning("%s: an interrupted command had moved it aside; it is back", path)
                entry.rename(path)
            else:
                _remove(entry)


def check_replaceable(folder: Path, kind: FolderKind, *, overwrite: bool, sources: Sequence[Path] = ()) -> Path:
    """The real path of a folder to be written.

    Args:
        sources: files and folders that are read meanwhile.

    Raises:
        CheckpointError: it exists and is not to be overwritten, is not wholly of this kind, or holds a source.
    """
    real = real_path(folder)
    remove_leftovers(real)
    check_apart(folder, sources)
    if not real.exists() or (real.is_dir() and not any(real.iterdir())):
        return real
    if not overwrite:
        raise CheckpointError(
            f"{folder} exists already; give another name, or overwrite it (--overwrite; in Python overwrite=True)"
        )
    if not real.is_dir() or not kind.is_one(real):
        raise CheckpointError(f"{folder} exists and is no {kind.name}, so it is not overwritten; give another name")
    other = _other_entries(real, kind.files)
    if other:
        more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
        raise CheckpointError(
            f"{folder} is not overwritten: besides a {kind.name} it holds {', '.join(other[:_SHOWN])}{more}; "
            "move that elsewhere or give another name"
        )
    return real


def check_apart(target: Path, sources: Sequence[Path]) -> None:
    """Raises CheckpointError if ``target`` is to replace a folder that holds a source, or would lie in a source."""
    real = real_path(target)
    for source in sources:
        for path in {source.absolute(), real_path(source)}:
            if path.is_relative_to(real) and real.exists():
                raise CheckpointError(
                    f"{source} lies in {target} and would be deleted with it; give another name to write to"
                )
            if path.is_dir() and real.is_relative_to(path):
                raise CheckpointError(f"{target} would lie in the source {source}; give a name outside of it")


@contextmanager
def new_folder(folder: Path, kind: FolderKind, *, overwrite: bool, sources: Sequence[Path] = ()) -> Generator[Path]:
    """A folder to write into; it becomes ``folder`` when the block ends without an error.

    What was there stays until then. Whatever goes wrong, nothing half-written is left; after a kill, by the next call.

    Raises:
        CheckpointError: as ``check_replaceable``.
        OSError: there is no place for it.
    """
    real = check_replaceable(folder, kind, overwrite=overwrite, sources=sources)
    real.parent.mkdir(parents=True, exist_ok=True)
    new = beside(real, "new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir()
        yield new
        # Again: what came into the folder meanwhile is not lost.
        check_replaceable(folder, kind, overwrite=overwrite, sources=sources)
        _replace(real, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def work_folder(path: Path) -> Generator[Path]:
    """A folder beside ``path`` for the time that ``path`` is being made. Raises OSError."""
    work = beside(path, "work")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _replace(folder: Path, new: Path) -> None:
    """Rename ``new`` to ``folder``; what was there stays until then, and comes back if renaming fails."""
    old = beside(folder, "old")
    is_here = _current_folder() == folder
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if is_here:
        os.chdir(folder)
        _log.warning("%s is a new folder now; a shell that is in it sees its files after `cd .`", folder)


def _other_entries(folder: Path, files: frozenset[str]) -> list[str]:
    """What is not in ``files``; links too, which are never written."""
    folders = {str(parent) for file in files for parent in PurePosixPath(file).parents}
    other: list[str] = []
    for path, inner, names in os.walk(folder):
        here = Path(path)
        for name in sorted(inner + names):
            entry = here / name
            relative = entry.relative_to(folder).as_posix()
            if entry.is_symlink() or relative not in (folders if entry.is_dir() else files):
                other.append(relative)
        inner[:] = [name for name in inner if (here / name).relative_to(folder).as_posix() in folders]
    return other


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True


def _current_folder() -> Path | None:
    try:
        return Path.cwd()
    except OSError:
        return None
