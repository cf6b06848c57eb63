"""Images that lists and tables name by path."""

import errno
import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Iterator
from urllib.parse import unquote

from clipa_eqx.errors import DataError
from conversion.records.places import Place, open_place, protocols
from conversion.records.rows import Part, printable

_NO_FILE = "no such file"
_COMPOSITIONS = ("NFC", "NFD")  # of Unicode
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError)  # the last: a NUL, a lone surrogate


def read_image(place: Place, path: str, *, part: Part | None = None, images: str | None = None) -> bytes | str:
    """The content of an image file, or a text that says why there is none.

    A relative path is looked up in ``images``, else next to the file that the part is read from; without a part the
    path is complete. If there is no such file, other spellings of the path are tried: separators of Windows, characters
    that are escaped as in URLs, a suffix in the other case, and composed or decomposed letters. A row may name a URL
    only in the filesystem of the source or of ``images``, or a local file. Other URLs would open any connection that
    somebody wrote into a list.

    Raises:
        DataError: the file exists but cannot be read. That is no reason to drop a row: the next attempt may succeed.
    """
    if part is not None and part.labels_only:
        return "not read"
    found = _read(place, path, part=part, images=images)
    if found == _NO_FILE:
        others = (_read(place, other, part=part, images=images) for other in _spellings(path))
        return next((image for image in others if isinstance(image, bytes)), found)
    return found


def _spellings(path: str) -> Iterator[str]:
    """Yield other spellings of a path that a file may have: of Windows, of a URL, with a suffix in the other case, and
    with letters such as umlauts in one or two characters (macOS writes two).
    """
    forms = [path, path.replace("\\", "/"), unquote(path), unquote(path).replace("\\", "/")]
    forms += [unicodedata.normalize(form, one) for one in dict.fromkeys(forms) for form in _COMPOSITIONS]
    for form in dict.fromkeys(forms):
        stem, suffix = posixpath.splitext(form)
        yield from (one for one in (form, f"{stem}{suffix.lower()}", f"{stem}{suffix.upper()}") if one != path)


def _read(place: Place, path: str, *, part: Part | None, images: str | None) -> bytes | str:
    if "://" in path:
        scheme = path.partition("://")[0]
        allowed = {"file", "local", *protocols(place.fs), *(protocols(open_place(images).fs) if images else ())}
        if scheme not in allowed or "::" in path:
            return f"its path {printable(path)[:100]!r} is not in the filesystem of the source, of --images, or local"
        try:
            place = open_place(path)
        except DataError as error:
            if isinstance(error.__cause__, (*_ABSENT, TypeError)):
                return str(error)  # not a URL, or in an archive that does not exist
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
            return "not a plain file"  # reading a pipe or a device may never end
        return bytes(place.fs.cat_file(path))
    except _ABSENT as error:
        return str(error) if isinstance(error, ValueError) else _NO_FILE
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return str(error)
        raise DataError(f"image {path} cannot be read: {error}; repeat the same command to resume") from error


def is_complete(path: str) -> bool:
    """Check whether a path needs no folder before it."""
    return path.startswith("/") or re.match(r"^\w+://", path) is not None
