"""Local paths and fsspec URLs: open, list, stage, and write in one step."""

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from clipa_eqx.errors import DataError
from clipa_eqx.replacing import new_file

_log = logging.getLogger(__name__)


class Place(NamedTuple):
    """A folder or file in a filesystem: `fs` is fsspec's, `path` is inside it, `url` is what the user wrote."""

    url: str
    fs: Any
    path: str

    @property
    def is_local(self) -> bool:
        return "file" in protocols(self.fs)

    @property
    def crosses_processes(self) -> bool:
        """Whether another process that opens the same URL sees the same files."""
        return "memory" not in protocols(self.fs)

    def child(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"


class Found(NamedTuple):
    """A file: `path` inside its filesystem, `name` relative to the folder that was searched, size in bytes."""

    path: str
    name: str
    size: int


def open_place(url: str | Path) -> Place:
    """The filesystem and path of a local path or of a URL such as `gs://bucket/folder`.

    Raises:
        DataError: an unknown protocol, or its driver is not installed.
    """
    from fsspec.core import url_to_fs

    text = os.fspath(url)
    if not text:
        raise DataError("a source or destination is empty; give . for the working folder")
    try:
        fs, path = url_to_fs(text)
    # Drivers raise errors of their own for missing archives, credentials and connections.
    except Exception as error:
        raise DataError(f"{text} cannot be opened: {error}") from error
    return Place(text, fs, str(path))


def is_pattern(place: Place) -> bool:
    return re.search(r"[*?\[]", place.path) is not None and not place.fs.exists(place.path)


def root_of(place: Place) -> str:
    """Path of the folder that a source is searched from: itself, that of the file, or that before a pattern."""
    if is_pattern(place):
        return re.split(r"[*?\[]", place.path)[0].rpartition("/")[0]
    return place.path.rpartition("/")[0] if place.fs.isfile(place.path) else place.path.rstrip("/")


def holds(outer: Place, inner: Place) -> bool:
    """Whether `inner` is `outer` or lies inside of it, also by way of links."""
    if set(protocols(outer.fs)).isdisjoint(protocols(inner.fs)):
        return False
    above, below = (os.path.realpath(one.path) if one.is_local else one.path for one in (outer, inner))
    return f"{below.rstrip('/')}/".startswith(f"{above.rstrip('/')}/")


def find_files(place: Place, *, may_be_empty: bool = False) -> list[Found]:
    """All files of a folder and its folders, of a pattern such as `data/*.tar`, or the one file; sorted by path.

    Raises:
        DataError: there is no such file or folder, or no file at all (unless it `may_be_empty`).
    """
    fs = place.fs
    try:
        root = root_of(place)
        if is_pattern(place):
            found: dict[str, Any] = fs.glob(place.path, detail=True)
            found = {path: info for path, info in found.items() if info["type"] != "directory"}
        elif fs.isfile(place.path):
            found = {place.path: fs.info(place.path)}
        elif fs.isdir(place.path):
            found = _walk(place)
        else:
            raise DataError(
                f"the source {place.url} does not exist; give a folder, a file or a pattern like 'dir/*.tar'"
            )
    except OSError as error:
        raise DataError(f"the source {place.url} cannot be listed: {error}") from error
    if not found and not may_be_empty:
        raise DataError(f"the source {place.url} holds no files")
    return [
        Found(path, path[len(root) :].lstrip("/"), int(info.get("size") or 0)) for path, info in sorted(found.items())
    ]


def _walk(place: Place) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tqdm(desc=f"list {place.url}", unit=" files", delay=2) as bar:
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
    """Folders and the names of their files. fsspec follows no links to folders, and class folders are often just that.

    A link to a folder that it lies in is not followed: there would be no end.
    """

    def fail(error: OSError) -> None:
        raise error

    above = {root: frozenset({_identity(root)})}  # of each folder to come: itself and those it lies in
    for parent, folders, names in os.walk(root, followlinks=True, onerror=fail):
        held = above.pop(parent)
        for name in list(folders):
            path = os.path.join(parent, name)
            identity = _identity(path)
            if identity in held:
                _log.warning("%s leads back to a folder that it lies in: not followed", path)
                folders.remove(name)
            else:
                above[path] = held | {identity}
        yield parent, names


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def staged(fs: Any, path: str) -> Generator[str]:
    """A local file with the content of `path`: itself if it is local, else a copy that is removed afterwards.

    Raises:
        DataError: the file cannot be read.
    """
    if "file" in protocols(fs):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise unreadable(path, error) from error
        yield path
        return
    handle, copy = tempfile.mkstemp(suffix=f"-{path.rpartition('/')[2]}")
    os.close(handle)
    try:
        try:
            fs.get_file(path, copy)
        except OSError as error:
            raise unreadable(path, error) from error
        yield copy
    finally:
        os.unlink(copy)


def check_readable(place: Place, files: Iterable[Found]) -> None:
    """Look at local files before work begins on any of them; those in buckets show when they are opened.

    Raises:
        DataError: one is a broken link, not a plain file, or not for this user to read.
    """
    for file in files if place.is_local else ():
        if not os.path.exists(file.path):
            raise unreadable(file.path, OSError("a link to nothing"))
        if not os.path.isfile(file.path):  # to read a pipe may take for ever
            raise unreadable(file.path, OSError("not a plain file"))
        if not os.access(file.path, os.R_OK):
            raise unreadable(file.path, OSError("not for this user to read"))


def write_file(place: Place, name: str, content: bytes) -> None:
    """Write a file of the folder `place` so that it is there whole or not at all, also after a crash."""
    if not place.is_local:
        place.fs.pipe_file(place.child(name), content)
        return
    # There may be many thousand files in the folder: the destination looks once for what killed processes left.
    with new_file(Path(place.child(name)), clean=False) as temporary:
        temporary.write_bytes(content)


def move_in(place: Place, finished: Path, name: str) -> None:
    """Move or upload a finished local file to its name in the folder `place`."""
    if not place.is_local:
        place.fs.put_file(str(finished), place.child(name))
        finished.unlink()
        return
    with finished.open("rb") as file:
        os.fsync(file.fileno())  # else a power cut may leave the new name without its content
    finished.replace(place.child(name))


def read_files(place: Place, names: list[str]) -> dict[str, bytes]:
    """Contents by name; remote ones are fetched side by side."""
    if not names:
        return {}
    if place.is_local:
        return {name: Path(place.child(name)).read_bytes() for name in names}
    paths = {place.child(name): name for name in names}
    content: Any = place.fs.cat(list(paths))
    if isinstance(content, bytes):
        return {names[0]: content}
    return {names[i]: content[path] for i, path in enumerate(paths)}


def list_names(place: Place, folder: str = "") -> list[str]:
    """Sorted names of what lies directly in `place/folder`; nothing if there is no such folder."""
    try:
        paths: list[str] = place.fs.ls(place.child(folder) if folder else place.path, detail=False, refresh=True)
    except FileNotFoundError:
        return []
    return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)


def list_sizes(place: Place, folder: str = "") -> dict[str, int]:
    """Sizes in bytes by name of the files directly in `place/folder`; nothing if there is no such folder."""
    try:
        found: list[dict[str, Any]] = place.fs.ls(
            place.child(folder) if folder else place.path, detail=True, refresh=True
        )
    except FileNotFoundError:
        return {}
    if place.is_local:  # for fsspec a link is no file
        paths = (str(info["name"]) for info in found)
        return {os.path.basename(path): os.path.getsize(path) for path in paths if os.path.isfile(path)}
    files = (info for info in found if info["type"] == "file")
    return {str(info["name"]).rpartition("/")[2]: int(info.get("size") or 0) for info in files}


def unreadable(path: str, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read: {error}; mend it, and the same command goes on, or take it out of the source and begin"
        " again with --overwrite"
    )


def protocols(fs: Any) -> tuple[str, ...]:
    """All names that URLs of this filesystem may begin with."""
    protocol: str | tuple[str, ...] = fs.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
