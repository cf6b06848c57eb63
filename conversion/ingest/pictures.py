"""Pictures that lists and tables name by path."""

import errno
import os
import re
import stat

from clipa_eqx.errors import DataError
from conversion.ingest.files import Place, open_place
from conversion.ingest.rows import Part

_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError)  # the last: a NUL, a lone surrogate


def read_picture(place: Place, path: str, *, part: Part | None = None, images: str | None = None) -> bytes | None:
    """The file's content, None if there is no such file, or if there cannot be one of that name.

    A relative path is looked up in `images`, else beside the file that the part is read from; without a part `path` is
    complete.

    Raises:
        DataError: the file is there but cannot be read: no reason to drop a row, the next attempt may succeed.
    """
    if "://" in path:
        try:
            place = open_place(path)
        except DataError as error:
            if isinstance(error.__cause__, (*_ABSENT, TypeError)):
                return None  # not a URL, or of an archive that is not there
            raise
        path = place.path
    elif part is not None and not path.startswith("/"):
        if images is not None:
            place = open_place(images)
            path = place.child(path)
        else:
            path = f"{part.path.rpartition('/')[0]}/{path}"
    try:
        if place.is_local and not stat.S_ISREG(os.stat(path).st_mode):
            return None  # to read a pipe or a device may take for ever
        return bytes(place.fs.cat_file(path))
    except _ABSENT:
        return None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return None
        raise DataError(f"picture {path} cannot be read: {error}; the same command goes on from here") from error


def is_complete(path: str) -> bool:
    """Whether a path needs no folder before it."""
    return path.startswith("/") or re.match(r"^\w+://", path) is not None
