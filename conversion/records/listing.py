"""Listings of folders and patterns, local or remote, and the check that listed files can be read."""

import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from clipa_eqx.errors import DataError
from clipa_eqx.progress import progress_bar
from conversion.records.braces import expand_braces, has_braces
from conversion.records.places import Place, has_wildcards, is_pattern, protocols, root_of
from conversion.records.reading import unreadable

_log = logging.getLogger(__name__)


class FoundFile(NamedTuple):
    """A file of a listing.

    Attributes:
        path: the path inside its filesystem.
        name: the path relative to the folder that was searched.
        size: bytes.
    """

    path: str
    name: str
    size: int


def is_hidden(name: str) -> bool:
    """Check whether a file or folder belongs to a system or program: a part of its path starts with a dot or is
    ``__MACOSX``. Such are ``._x.tar``, ``.ipynb_checkpoints`` and ``.cache``; they hold no data.
    """
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/"))


def find_files(place: Place, *, may_be_empty: bool = False) -> list[FoundFile]:
    """All files below a folder, all files of a pattern such as ``data/*.tar``, or the one file; sorted by path.

    Raises:
        DataError: there is no such file or folder, nothing has one of the names that braces mean, or there is no
            file at all (unless it ``may_be_empty``).
    """
    fs = place.fs
    try:
        root = root_of(place)
        if is_pattern(place):
            found = _of_pattern(place)
        elif fs.isfile(place.path):
            found = {place.path: fs.info(place.path)}
        elif fs.isdir(place.path):
            found = _walk(place)
        else:
            raise DataError(
                f"the source {place.url} does not exist; give a folder, a file or a pattern like 'dir/*.tar'"
            )
    except DataError:
        raise
    # Drivers raise errors of their own for credentials and connections.
    except Exception as error:
        if place.is_local and not isinstance(error, OSError):
            raise
        raise DataError(f"the source {place.url} cannot be listed: {error}") from error
    if not found and not may_be_empty:
        raise DataError(f"the source {place.url} holds no files")
    return [
        FoundFile(path, path[len(root) :].lstrip("/"), int(info.get("size") or 0))
        for path, info in sorted(found.items())
    ]


def _of_pattern(place: Place) -> dict[str, Any]:
    """The files of a pattern. Braces may also name folders, whose files are then all meant."""
    if not has_braces(place.path):
        return _glob(place, place.path)
    found: dict[str, Any] = {}
    missing: list[str] = []
    listed: dict[str, dict[str, Any]] = {}  # entries of folders, so that many names take one request
    for path in expand_braces(place.path):
        held = _glob(place, path) if has_wildcards(path) else _named(place, path, listed)
        found.update(held)
        if not held:
            missing.append(path)
    if missing:
        shown = f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        raise DataError(
            f"of the names that {place.url} means, {len(missing):,} do not exist or hold no files: {shown}; "
            "complete the files, or give only those that exist, for example by a pattern with *"
        )
    return found


def _glob(place: Place, pattern: str) -> dict[str, Any]:
    found: dict[str, Any] = place.fs.glob(pattern, detail=True)
    return {path: info for path, info in found.items() if info["type"] != "directory"}


def _named(place: Place, path: str, listed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The file of this path, or all files of the folder; nothing if there is none."""
    if place.is_local:
        if os.path.isdir(path):
            return _walk(place._replace(path=path))
        return {path: {"size": os.path.getsize(path) if os.path.exists(path) else 0}} if os.path.lexists(path) else {}
    folder, name = path.rstrip("/").rpartition("/")[::2]
    if folder not in listed:
        listed[folder] = _entries(place, folder)
    info = listed[folder].get(name)
    if info is None and "http" in protocols(place.fs) and place.fs.isfile(path):  # a server may list nothing
        info = place.fs.info(path)
    if info is None:
        return {}
    return _walk(place._replace(path=path)) if info["type"] == "directory" else {path: info}


def _entries(place: Place, folder: str) -> dict[str, Any]:
    """Descriptions by name of the entries of a folder; empty if it cannot be listed."""
    try:
        found: list[dict[str, Any]] = place.fs.ls(folder, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {str(info["name"]).rstrip("/").rpartition("/")[2]: info for info in found}


def _walk(place: Place) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with progress_bar(what=f"list {place.url}", total=None, unit="file") as bar:
        if not place.is_local:
            for parent, _, files in place.fs.walk(place.path, detail=True, on_error="raise"):
                found.update({f"{parent.rstrip('/')}/{name}": info for name, info in files.items()})
                bar.update(len(files))
            return found
        for parent, names in _walk_links(place.path):
            for name in names:
                path = f"{parent.rstrip('/')}/{name}"
                found[path] = {"size": os.path.getsize(path) if os.path.exists(path) else 0}
            bar.update(len(names))
    return found


def _walk_links(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yield folders and the names of their files, through links to folders, which fsspec does not follow.

    A link to a folder that contains it is not followed, because the walk would not end.
    """

    def fail(error: OSError) -> None:
        raise error

    above = {root: frozenset({_identity(root)})}  # for each folder to come: itself and the folders that contain it
    for parent, folders, names in os.walk(root, followlinks=True, onerror=fail):
        held = above.pop(parent)
        for name in list(folders):
            path = os.path.join(parent, name)
            identity = _identity(path)
            if identity in held:
                _log.warning("%s links back to a folder that contains it: not followed", path)
                folders.remove(name)
            else:
                above[path] = held | {identity}
        yield parent, names


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def list_names(place: Place, folder: str = "") -> list[str]:
    """Sorted names of the entries directly in ``place/folder``; empty if there is no such folder."""
    try:
        paths: list[str] = place.fs.ls(place.child(folder) if folder else place.path, detail=False, refresh=True)
    except FileNotFoundError:
        return []
    return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)


def list_sizes(place: Place, folder: str = "") -> dict[str, int]:
    """Sizes in bytes by name of the files directly in ``place/folder``; empty if there is no such folder."""
    try:
        found: list[dict[str, Any]] = place.fs.ls(
            place.child(folder) if folder else place.path, detail=True, refresh=True
        )
    except FileNotFoundError:
        return {}
    if place.is_local:  # fsspec does not count a link as a file
        paths = (str(info["name"]) for info in found)
        return {os.path.basename(path): os.path.getsize(path) for path in paths if os.path.isfile(path)}
    files = (info for info in found if info["type"] == "file")
    return {str(info["name"]).rpartition("/")[2]: int(info.get("size") or 0) for info in files}


def list_folders(place: Place) -> set[str]:
    """Names of the folders directly in ``place``; empty if it is not a folder."""
    if not place.fs.isdir(place.path):
        return set()
    entries: list[dict[str, object]] = place.fs.ls(place.path, detail=True)
    return {str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"}


def check_readable(place: Place, files: Iterable[FoundFile]) -> None:
    """Check local files before work begins on any of them. Errors of remote files show when they are opened.

    Raises:
        DataError: one is a broken link, not a plain file, or not readable for this user.
    """
    for file in files if place.is_local else ():
        if not os.path.exists(file.path):
            raise unreadable(file.path, OSError("a link to nothing"))
        if not os.path.isfile(file.path):  # reading a pipe may never end
            raise unreadable(file.path, OSError("not a plain file"))
        if not os.access(file.path, os.R_OK):
            raise unreadable(file.path, OSError("not readable for this user"))
