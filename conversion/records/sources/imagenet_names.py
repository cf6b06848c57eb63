"""Names of ImageNet's images: their class, number, split and key, with archives in the place of folders."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from clipa_eqx.errors import DataError
from conversion.records.listing import FoundFile
from conversion.records.places import Place
from conversion.records.reading import unreadable
from conversion.records.rows import printable
from conversion.records.sources.columns import is_image_name
from conversion.records.sources.tars import DAMAGE, TAR_SUFFIXES, list_members

_ID = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"\d{1,3}")
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+")
_UNIQUE = re.compile(r"(ILSVRC2012_val_\d{8}|n\d{8}_\d+)\.\w+")  # names that are unique in ImageNet
_SPLIT_NAMES = {"ILSVRC2012_val_": "val", "ILSVRC2012_test_": "test"}
_ARCHIVE = re.compile(r"ILSVRC2012_img_(train|val|test)(_.*)?")
_FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class NamedImage(NamedTuple):
    """An image file, an image in an archive, or all images of an archive of one class.

    Attributes:
        name: its path in the source, with archives as folders; ends in a slash for all images of an archive.
        file: the image file or the archive.
        member: path in the archive; empty for all of them, None for a file.
    """

    name: str
    file: FoundFile
    member: str | None = None


def class_of(name: str) -> str | None:
    """The folder or archive that names the class of an image: a WordNet id, or a number below 1,000."""
    folders = name.split("/")[:-1]
    for pattern in (_ID, _NUMBER):
        if found := [folder for folder in folders if pattern.fullmatch(folder)]:
            return found[-1]
    return None


def number_of(name: str) -> int | None:
    """The number of a validation image of ImageNet, from 1; None for other images."""
    match = _VALIDATION.fullmatch(name.rpartition("/")[2])
    return int(match[1]) if match else None


def key_of(name: str) -> str:
    """The key of an image, the same in all layouts: its file name if that is unique, else with its class folder."""
    base = name.rpartition("/")[2]
    folder = class_of(name)
    if _UNIQUE.fullmatch(base) or folder is None:
        return base if _UNIQUE.fullmatch(base) else name
    parts = name.split("/")
    return "/".join(parts[len(parts) - 1 - parts[::-1].index(folder, 1) :])


def images_of(place: Place, files: Sequence[FoundFile], *, split: str | None) -> list[NamedImage]:
    """All images of a source. Archives of other splits, and of one class, are not opened.

    Raises:
        DataError: an archive cannot be read.
    """
    images: list[NamedImage] = []
    for file in files:
        if is_image_name(file.name):
            images.append(NamedImage(file.name, file))
        elif file.name.lower().endswith(TAR_SUFFIXES):
            images += _images_of_archive(place, file, split=split)
    return images


def choose_split(images: Sequence[NamedImage], *, split: str | None, where: str) -> list[NamedImage]:
    """The images of a split, checked to be of one set.

    Raises:
        DataError: there are several splits and none is chosen, there is no such split, it has no labels, an
            archive holds archives, or several sets are next to each other.
    """
    found = sorted({one for image in images if (one := _split_of(image.name)) is not None})
    wanted = None if split is None else _FOLDERS.get(split.lower(), split)
    if wanted is None and len(found) > 1:
        raise DataError(f"{where} holds the splits {', '.join(found)}; choose one with --split")
    if wanted is not None and wanted not in found:
        held = f"the splits {', '.join(found)}" if found else "no folders or archives of splits"
        raise DataError(f"{where} has no split {split!r}; it holds {held}")
    if (wanted or "".join(found)) == "test":
        raise DataError(f"{where}: the labels of ImageNet's test images are not published; use the validation images")
    chosen = [image for image in images if wanted is None or _split_of(image.name) == wanted]
    for image in chosen:
        if image.member == "" and class_of(image.name) is None:
            raise DataError(
                f"{image.file.path} holds archives, one per class; extract these into a folder first (tar xf), which "
                "may then be given as the source"
            )
    roots = sorted({_root_of(image.name) for image in chosen if class_of(image.name) or number_of(image.name)})
    if len(roots) > 1 and any(class_of(image.name) for image in chosen):
        shown = ", ".join(printable(root) or "." for root in roots[:5])
        more = f" and {len(roots) - 5:,} more" if len(roots) > 5 else ""
        raise DataError(f"{where} holds images of classes in several folders or archives: {shown}{more}; give one")
    return chosen


def _images_of_archive(place: Place, file: FoundFile, *, split: str | None) -> Iterator[NamedImage]:
    folder = file.name[: -len(next(end for end in TAR_SUFFIXES if file.name.lower().endswith(end)))]
    if _ID.fullmatch(folder.rpartition("/")[2]):
        yield NamedImage(f"{folder}/", file, "")
        return
    of_file = _split_of(f"{folder}/")
    if split is not None and of_file is not None and of_file != _FOLDERS.get(split.lower(), split):
        yield NamedImage(f"{folder}/", file, "")  # it shows that there is such a split
        return
    names: list[str] = []
    try:
        names.extend(list_members(place, file.path))
    except DAMAGE as error:
        if not names:
            raise unreadable(file.path, error) from error
        # The images before the damage are read, and the damage is counted then.
    if any(name.lower().endswith(TAR_SUFFIXES) for name in names):
        yield NamedImage(f"{folder}/", file, "")
    yield from (NamedImage(f"{folder}/{name}", file, name) for name in names if is_image_name(name))


def _split_of(name: str) -> str | None:
    """The split that the name of an image, of its archive or of a folder above says."""
    *folders, base = name.split("/")
    for start, split in _SPLIT_NAMES.items():
        if base.startswith(start):
            return split
    for folder in folders:
        archive = _ARCHIVE.fullmatch(folder)
        if (split := archive[1] if archive else _FOLDERS.get(folder.lower())) is not None:
            return split
    return None


def _root_of(name: str) -> str:
    """The folder above the class folder, or above the image if it has none."""
    folder = class_of(name)
    parts = name.split("/")[:-1]
    return "/".join(parts if folder is None else parts[: len(parts) - 1 - parts[::-1].index(folder)])
