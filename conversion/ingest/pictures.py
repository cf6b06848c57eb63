"""Pictures that lists and tables name by path."""

import re

from clipa_eqx.errors import DataError
from conversion.ingest.files import Place, open_place
from conversion.ingest.rows import Part


def read_picture(place: Place, path: str, *, part: Part | None = None, images: str | None = None) -> bytes | None:
    """The file's content, None if there is no such file.

    A relative path is looked up in `images`, else beside the file that the part is read from; without a part `path` is
    complete.

    Raises:
        DataError: the file is there but cannot be read: no reason to drop a row, the next attempt may succeed.
    """
    fs = place.fs
    if "://" in path:
        fs, path = open_place(path)[1:]
    elif part is not None and not path.startswith("/"):
        if images is not None:
            other = open_place(images)
            fs, path = other.fs, other.child(path)
        else:
            path = f"{part.path.rpartition('/')[0]}/{path}"
    try:
        return bytes(fs.cat_file(path))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"picture {path} cannot be read: {error}; the same command goes on from here") from error


def is_complete(path: str) -> bool:
    """Whether a path needs no folder before it."""
    return path.startswith("/") or re.match(r"^\w+://", path) is not None
