"""Reading of files that may be remote: local copies, and contents of many small files at once."""

import contextlib
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

from clipa_eqx.errors import DataError
from conversion.records.places import Place, protocols
from conversion.records.rows import LOCAL_COPY


@contextlib.contextmanager
def local_copy(fs: Any, path: str) -> Generator[str]:
    """A local path with the content of ``path``: itself if it is local, else a copy that is removed afterwards.

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
    with tempfile.TemporaryDirectory(prefix=LOCAL_COPY) as folder:
        copy = f"{folder}/{path.rpartition('/')[2]}"
        try:
            fs.get_file(path, copy)
        except OSError as error:
            raise unreadable(path, error) from error
        yield copy


def open_file(place: Place, path: str) -> Any:
    """Open a file of the filesystem of ``place`` for reading bytes.

    Raises:
        DataError: the file cannot be opened.
    """
    try:
        return place.fs.open(path, "rb")
    except OSError as error:
        raise unreadable(path, error) from error


def read_files(place: Place, names: list[str]) -> dict[str, bytes]:
    """Contents by name of files in the folder ``place``. Remote files are fetched concurrently."""
    if not names:
        return {}
    if place.is_local:
        return {name: Path(place.child(name)).read_bytes() for name in names}
    paths = {place.child(name): name for name in names}
    content: Any = place.fs.cat(list(paths))
    if isinstance(content, bytes):
        return {names[0]: content}
    return {names[i]: content[path] for i, path in enumerate(paths)}


def unreadable(path: str, error: Exception) -> DataError:
    """The error for a source file that cannot be read, with advice."""
    return DataError(
        f"{path} cannot be read: {error}; fix it and repeat the same command to resume, or take it out of the source "
        "and start again with --overwrite"
    )
