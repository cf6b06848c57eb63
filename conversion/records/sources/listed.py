"""Lists of images held in memory: rows of one image joined, cut into parts, and read with the images that they name."""

import posixpath
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple
from urllib.parse import unquote

from conversion.records.listing import FoundFile
from conversion.records.options import IngestOptions
from conversion.records.places import Place, open_place
from conversion.records.rows import NO_CLASS_FOLDER, ListedRow, Lost, Part, Row
from conversion.records.sources.images import is_complete, read_image


class ListFile(NamedTuple):
    """A list file with its filesystem and options, which complete the paths and keys of its rows.

    Attributes:
        key_folder: put before relative paths that are keys, as "a/"; empty unless lists are in several folders.
    """

    place: Place
    file: FoundFile
    options: IngestOptions
    key_folder: str = ""

    def complete(self, path: str) -> str:
        """The path or URL of an image, complete."""
        if is_complete(path):
            return path
        if self.options.images is None:
            return f"{self.file.path.rpartition('/')[0]}/{path}"
        images = open_place(self.options.images)
        return str(images.fs.unstrip_protocol(images.child(path)))


def path_key(path: str, key_folder: str) -> str:
    """The key of a row that has only a path: images of equal name next to lists in different folders are different."""
    return path if not key_folder or is_complete(path) else posixpath.normpath(f"{key_folder}{path}")


def identity_of(path: str) -> str:
    """The path in one spelling, without ``.`` and with single slashes, so that rows of one image are found.

    >>> identity_of("./a//b.jpg"), identity_of("a\\\\b.jpg"), identity_of("/a/./b.jpg"), identity_of("gs://a/b.jpg")
    ('a/b.jpg', 'a/b.jpg', '/a/b.jpg', 'gs://a/b.jpg')
    """
    if not any(mark in path for mark in ("./", "//", "\\")):
        return path
    scheme, _, local = path.rpartition("://")
    if scheme not in ("", "file", "local"):
        return path
    path = local.replace("\\", "/")
    return "/" * path.startswith("/") + "/".join(part for part in path.split("/") if part not in ("", "."))


def spelled(path: str) -> str:
    """The path in a form that is equal for all spellings under which ``read_image`` may find the file."""
    return unicodedata.normalize("NFC", unquote(identity_of(path))).lower()


def join_rows(rows: Iterable[ListedRow | Lost]) -> list[ListedRow | Lost]:
    """Join rows with the same image and label, wherever they are, into one with the captions of all, in order.

    The row is at the place of the first, with its key and values to keep. A row without a path is not joined.
    """
    joined: list[ListedRow | Lost] = []
    first: dict[tuple[str, tuple[int | str, ...]], int] = {}
    captions: dict[int, list[str | bytes | None]] = {}  # of rows that others join
    for row in rows:
        if isinstance(row, ListedRow) and row.path and not row.path.endswith("/"):
            at = first.setdefault((identity_of(row.path), row.labels), len(joined))
            if at < len(joined):
                before = joined[at]
                held = before.captions if isinstance(before, ListedRow) else ()
                captions.setdefault(at, list(held)).extend(row.captions)
                continue
        joined.append(row)
    for at, texts in captions.items():
        before = joined[at]
        if isinstance(before, ListedRow):
            joined[at] = replace(before, captions=tuple(texts))
    return joined


def list_parts(
    rows: Sequence[ListedRow | Lost], sizes: list[int], *, source: str, options: IngestOptions
) -> tuple[Part, ...]:
    """Cut a list into parts of ``records_per_shard`` rows."""
    step = options.records_per_shard
    return tuple(
        Part(source=f"{source}, rows {i} on", path="", size=sum(sizes[i : i + step]), rows=tuple(rows[i : i + step]))
        for i in range(0, len(rows), step)
    )


def read_listed(place: Place, part: Part, options: IngestOptions, *, labeled: bool) -> Iterator[Row | Lost]:
    """The rows of a part with the images they name (see ``read_image``). ``labeled`` rows need a class folder."""
    for row in part.rows or ():
        if isinstance(row, Lost):
            yield row
        elif labeled and row.label is None:
            yield Lost(reason=NO_CLASS_FOLDER, key=row.key)
        else:
            image = partial(read_image, place, row.path, images=options.images)
            yield Row(key=row.key, image=image, captions=row.captions, labels=row.labels, extra=row.extra)
