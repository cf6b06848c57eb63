"""Images and texts to embed, in a fixed order: files of a folder, lines of a file, images and captions of records."""

import hashlib
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from clipa_eqx.data.addresses import is_url
from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
"""Endings of image files, in any case."""

LINES_PER_MARK = 1024
"""Lines between two places of a text file that are noted, so that reading can start there."""

_RECORDS_AT_ONCE = 64


class Item(NamedTuple):
    """Something to embed.

    Attributes:
        number: place of its input among all inputs, from 0; captions of one record share it.
        id: relative path of a file, key of a record, key and number of a caption, or number of a line from 1.
        content: a path or the content of a file for an image, the text for a text; an error if it cannot be read.
    """

    number: int
    id: str
    content: Path | bytes | str | DataError


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything to embed, read again from any place.

    Attributes:
        kind: images or texts.
        about: the identity of the inputs as JSON: equal if and only if ids and order are equal and contents were not
            visibly changed.
        count: number of files, lines or records.
        read: the items of a range of inputs, one after the other.
    """

    kind: Literal["images", "texts"]
    about: Mapping[str, Any]
    count: int
    read: Callable[[range], Iterator[Item]]


class ImageFile(NamedTuple):
    """A file in a folder: its relative path with ``/``, its size in bytes, and the time of its last change in ns."""

    name: str
    size: int
    changed: int


def list_images(folder: Path, *, outside: Path | None = None) -> list[ImageFile]:
    """All files of a folder and its subfolders that are named like images, by relative path.

    Names that start with a dot, ``__MACOSX``, and links to folders are left out.

    Args:
        outside: a folder below it whose files are left out.

    Raises:
        DataError: the folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); change its permissions, or move it")

    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}; give a folder with images")
    skipped = None if outside is None else outside.resolve()
    found: list[ImageFile] = []
    for here, inner, names in os.walk(folder, onerror=refuse):
        inner[:] = [
            one for one in inner if not _is_hidden(one) and (skipped is None or Path(here, one).resolve() != skipped)
        ]
        for name in names:
            path = Path(here, name)
            if path.suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(name):
                try:
                    status = path.stat()
                except OSError:  # a link to nothing, or a file that was deleted meanwhile
                    continue
                found.append(ImageFile(path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns))
    return sorted(found)


def image_folder_inputs(folder: Path) -> Inputs:
    """The image files of a folder, in the order of ``list_images``.

    Raises:
        DataError: the folder cannot be read, or has no images.
    """
    files = list_images(folder)
    if not files:
        raise DataError(f"{folder} has no images; expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    listing = hashlib.sha256("".join(f"{file.name}\0{file.size}\0" for file in files).encode("utf-8", "surrogatepass"))
    names = [file.name for file in files]

    def read(numbers: range) -> Iterator[Item]:
        for number in numbers:
            yield Item(number, names[number], folder / names[number])

    about = {
        "source": "image folder",
        "path": str(folder.resolve()),
        "count": len(names),
        "sha256": listing.hexdigest(),
    }
    return Inputs(kind="images", about=about, count=len(names), read=read)


def text_file_inputs(path: Path) -> Inputs:
    """The lines of a UTF-8 file. Each is a text, also an empty one, so that row i is the embedding of line i.

    Raises:
        DataError: the file cannot be read, or is empty.
    """
    marks, digest, count, at = array("q"), hashlib.sha256(), 0, 0
    try:
        with path.open("rb") as file:
            for line in file:
                if count % LINES_PER_MARK == 0:
                    marks.append(at)
                digest.update(line)
                at, count = at + len(line), count + 1
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give a UTF-8 file, one text per line") from error
    if not count:
        raise DataError(f"{path} is empty; give a UTF-8 file, one text per line")

    def read(numbers: range) -> Iterator[Item]:
        if not numbers:
            return
        with path.open("rb") as file:
            file.seek(marks[numbers.start // LINES_PER_MARK])
            for number in range(numbers.start // LINES_PER_MARK * LINES_PER_MARK, numbers.stop):
                line = file.readline()
                if number >= numbers.start:
                    yield Item(number, str(number + 1), _text_of(line, is_first=number == 0))

    about = {"source": "text file", "path": str(path.resolve()), "count": count, "sha256": digest.hexdigest()}
    return Inputs(kind="texts", about=about, count=count, read=read)


def record_inputs(source: RecordSource, *, kind: Literal["images", "texts"]) -> Inputs:
    """The images of a record folder in order, or all of its captions.

    Raises:
        DataError: the folder has no records.
    """
    if not len(source):
        raise DataError(f"data folder {source.folder} has no records; there is nothing to embed")

    def read(numbers: range) -> Iterator[Item]:
        for start in range(numbers.start, numbers.stop, _RECORDS_AT_ONCE):
            some = range(start, min(start + _RECORDS_AT_ONCE, numbers.stop))
            for number, record in zip(some, source.read_each(some), strict=True):
                if isinstance(record, DataError):
                    yield Item(number, source.describe(number), record)
                elif kind == "images":
                    yield Item(number, record.key, record.image)
                else:
                    for i, caption in enumerate(record.captions):
                        yield Item(number, f"{record.key}#{i}", caption)

    shards = source.manifest.table.contents()
    about = {
        "source": "record folder",
        "path": source.folder if is_url(source.folder) else str(Path(source.folder).resolve()),
        "count": len(source),
        "sha256": hashlib.sha256(repr(shards).encode()).hexdigest(),
    }
    return Inputs(kind=kind, about=about, count=len(source), read=read)


def _text_of(line: bytes, *, is_first: bool) -> str | DataError:
    try:
        return line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8-sig" if is_first else "utf-8")
    except UnicodeDecodeError as error:
        return DataError(f"not UTF-8 ({error.reason} at byte {error.start} of the line)")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
