"""Atomic writing: new files and folders are written next to their place and renamed into it."""

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

from clipa_eqx.errors import CheckpointError

_log = logging.getLogger(__name__)

_LARGEST_PROCESS_ID = 1 << 22  # of Linux; other systems have smaller ones
# Files that this package once wrote as NAME.tmp-PID before it renamed them.
_FORMER_FILES = frozenset({"config.json", "metrics.jsonl", "manifest.json", "command.json"})

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class FolderKind:
    """A kind of folder that may be replaced if the user asks for it.

    Attributes:
        name: the name in error messages, such as "model folder".
        files: relative paths of all files ever written to such a folder; a folder with any other file is not replaced.
        is_one: decides from the contents of the files, not only from their names, whether a folder is of this kind.
    """

    name: str
    files: frozenset[str]
    is_one: Callable[[Path], bool]


@contextmanager
def new_file(path: Path, *, clean: bool = True) -> Generator[Path]:
    """Yield a temporary path next to ``path``; rename it to ``path`` when the block ends without an error.

    ``path`` is complete or absent (or the former file) at any time, also after a kill or a power cut: content and name
    are synced to disk before this returns. A link is followed: the file it points to is replaced. Missing parent
    folders are created. The temporary file is removed if the block fails; after a kill, by the next call.

    Args:
        clean: look for leftovers of killed processes, which lists the folder once; False suits folders of many files.

    Raises:
        OSError: the file cannot be written, or ``path`` is something else than a file.
    """
    real = _real_file(path)
    real.parent.mkdir(parents=True, exist_ok=True)
    if clean:
        remove_leftovers(real)
    temporary = temporary_path(real, "new")
    _remove_file(temporary)
    try:
        yield temporary
        _sync(temporary)  # otherwise a power cut may leave the new name without its content
        os.replace(temporary, real)
        with suppress(OSError):  # some network file systems cannot sync a folder
            _sync(real.parent)
    finally:
        _remove_file(temporary)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file in one atomic step. Raises OSError, as ``new_file``."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def real_path(path: Path) -> Path:
    """The absolute path without links, so that the target of a link is replaced and never the link.

    Raises:
        CheckpointError: the links form a circle, or the name is not possible.
    """
    try:
        real = path.resolve()
        real.exists()  # raises for a name that is too long
        return real
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} leads nowhere ({error}); give another name") from error


def temporary_path(path: Path, kind: Literal["new", "old", "work"]) -> Path:
    """The path next to ``path`` where this process writes its new content, or keeps the old one meanwhile."""
    return path.with_name(f".{path.name}.{kind}-{os.getpid()}")


def is_temporary(name: str, of: str) -> bool:
    """Whether an entry called ``name`` was made while one called ``of`` was written next to it.

    >>> is_temporary(".model.new-12", "model"), is_temporary("model.tmp-12", "model")
    (True, False)
    """
    return _temporary(name, of) is not None


def remove_leftovers(path: Path) -> None:
    """Delete the temporary entries of killed processes. If one had moved ``path`` aside, restore it."""
    # "old" first: once it is restored, nothing is missing that "new" could replace.
    found = [(entry, one) for entry in _entries(path.parent) if (one := _temporary(entry.name, path.name)) is not None]
    for entry, (kind, process) in sorted(found, key=lambda one: one[1][0] != "old"):
        if kind == "tmp" and not entry.is_file():  # a folder of such a name is the user's
            continue
        # Process ids are reused, quickly in containers. An "old" entry with our own id can only be left over from an
        # earlier process, because it exists only between two renames; other entries may be in use.
        if _is_alive(process) and not (kind == "old" and process == os.getpid()):
            continue
        with suppress(OSError):
            if kind == "old" and not os.path.lexists(path):
                _log.warning("%s: an interrupted command had moved it aside; it is restored", path)
                entry.rename(path)
            else:
                _remove(entry)


def check_replaceable(folder: Path, kind: FolderKind, *, overwrite: bool, sources: Sequence[Path] = ()) -> Path:
    """The real path of a folder that is to be written.

    Args:
        sources: files and folders that are read meanwhile.

    Raises:
        CheckpointError: the folder exists and ``overwrite`` is False, it has other contents than this kind has, or a
            source is inside it.
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
        raise CheckpointError(f"{folder} exists and is not a {kind.name}, so it is not overwritten; give another name")
    other = _other_entries(real, kind.files)
    if other:
        more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
        raise CheckpointError(
            f"{folder} is not overwritten: it is a {kind.name} that also holds {', '.join(other[:_SHOWN])}{more}; "
            "move that elsewhere or give another name"
        )
    return real


def check_apart(target: Path, sources: Sequence[Path]) -> None:
    """Raise CheckpointError if writing ``target`` would delete a source, or would write into a source folder."""
    real = real_path(target)
    for source in sources:
        for path in {source.absolute(), real_path(source)}:
            if path.is_relative_to(real) and real.exists():
                raise CheckpointError(
                    f"{source} is inside {target} and would be deleted with it; give another name to write to"
                )
            if path.is_dir() and real.is_relative_to(path):
                raise CheckpointError(f"{target} would be inside the source {source}; give a name outside of it")


@contextmanager
def new_folder(folder: Path, kind: FolderKind, *, overwrite: bool, sources: Sequence[Path] = ()) -> Generator[Path]:
    """Yield an empty folder to write into; it becomes ``folder`` when the block ends without an error.

    The former folder stays until then. Nothing half-written is left after an error; after a kill, the next call cleans
    up. Contents are not synced to disk: folders are large, and are written again from their source.

    Raises:
        CheckpointError: as ``check_replaceable``.
        OSError: the folder cannot be written.
    """
    real = check_replaceable(folder, kind, overwrite=overwrite, sources=sources)
    # Checked again before the rename, so that files which came into the folder meanwhile are not lost.
    check = partial(check_replaceable, folder, kind, overwrite=overwrite, sources=sources)
    with replacing_folder(real, check=check) as new:
        yield new


@contextmanager
def replacing_folder(real: Path, *, check: Callable[[], object]) -> Generator[Path]:
    """Yield an empty folder that replaces the folder ``real``, whatever that is, if ``check`` does not raise.

    Raises:
        OSError: the folder cannot be written.
    """
    real.parent.mkdir(parents=True, exist_ok=True)
    new = temporary_path(real, "new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir()
        yield new
        check()
        _replace(real, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def scratch_folder(path: Path) -> Generator[Path]:
    """Yield a temporary folder next to ``path`` for the time that ``path`` is being made. Raises OSError."""
    work = temporary_path(path, "work")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _replace(folder: Path, new: Path) -> None:
    """Rename ``new`` to ``folder``; the former folder stays until then, and is restored if renaming fails."""
    old = temporary_path(folder, "old")
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


def _real_file(path: Path) -> Path:
    try:
        real = path.resolve()
    except RuntimeError as error:  # Python before 3.13, for a circle of links
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error
    if real.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if real.exists() and not real.is_file():  # such as /dev/null, which a rename would delete
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return real


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary(name: str, of: str) -> tuple[str, int] | None:
    """Kind and process id in the name of a temporary entry; None for any other name, which may be the user's."""
    match = re.fullmatch(rf"\.{re.escape(of)}\.(new|old|work)-(\d{{1,7}})", name)
    if match is None and of in _FORMER_FILES:
        match = re.fullmatch(rf"{re.escape(of)}\.(tmp)-(\d{{1,7}})", name)
    # A larger number is no process id, but perhaps a date.
    return (match[1], int(match[2])) if match and int(match[2]) <= _LARGEST_PROCESS_ID else None


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _remove_file(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _other_entries(folder: Path, files: frozenset[str]) -> list[str]:
    """Entries that are not in ``files``, and all links, because none is ever written."""
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
