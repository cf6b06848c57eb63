"""ObjectNet as downloaded: its folders, the classes that it shares with ImageNet, and the border of its images.

ObjectNet has 313 classes, of which 113 are one or more classes of ImageNet each; only images of these are scored.
Every image has a red border, which must be removed before use. Both as in the code of ObjectNet
(https://github.com/abarbu/objectnet-template-pytorch) and of wise-ft (https://github.com/mlfoundations/wise-ft,
``src/datasets/objectnet.py``), which cut 2 pixels from each side.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

from PIL import Image

from clipa_eqx.data.images.decode import decode_image
from clipa_eqx.errors import DataError, counted
from clipa_eqx.evals.prompts import wordnet_ids
from conversion.records.listing import FoundFile
from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.reading import unreadable
from conversion.records.rows import NO_CLASS, NO_CLASS_FOLDER, ListedRow, Lost, Plan, one_label, shortened
from conversion.records.sources.columns import is_image_name
from conversion.records.sources.listed import list_parts
from conversion.records.sources.planning import digest_of, ignored_files
from conversion.records.sources.source import SourceFiles

BORDER = 2
"""Pixels to cut from each side of an image."""

_FOLDERS = "folder_to_objectnet_label.json"
_SHARED = "objectnet_to_imagenet_1k.json"
_NUMBERS = "pytorch_to_imagenet_2012_id.json"
_NAMES = "imagenet_to_label_2012_v2"


class ObjectNet(NamedTuple):
    """Classes of ObjectNet.

    Attributes:
        folders: name of its class by folder of images, for all classes.
        ids: WordNet ids of ImageNet by folder, for the classes that ImageNet has.
        files: paths of the files that say so.
    """

    folders: Mapping[str, str]
    ids: Mapping[str, tuple[str, ...]]
    files: frozenset[str]


def is_mapping(name: str) -> bool:
    """Check whether a file of this name is that with the classes that ObjectNet shares with ImageNet."""
    return name.rpartition("/")[2] == _SHARED


def read_objectnet(place: Place, found: Sequence[FoundFile]) -> ObjectNet | None:
    """The classes of ObjectNet if its mappings are among the files of a source; None otherwise.

    Raises:
        DataError: a mapping is missing, cannot be read or does not fit the others.
    """
    shared_file = next((file for file in found if is_mapping(file.name)), None)
    if shared_file is None:
        return None
    folder = shared_file.path.rpartition("/")[0]
    paths = {name: f"{folder}/{name}" for name in (_FOLDERS, _SHARED, _NUMBERS, _NAMES)}
    held = {file.path for file in found}
    for name, path in paths.items():
        if path not in held:
            raise DataError(f"{place.url} has ObjectNet's {shared_file.name}, but next to it no {name}; copy it there")
    folders = _texts(place, paths[_FOLDERS])
    shared = _texts(place, paths[_SHARED])
    ids = _ids_by_name(place, paths[_NAMES], paths[_NUMBERS])
    folder_of = {label: one for one, label in folders.items()}
    classes: dict[str, tuple[str, ...]] = {}
    for label, names in shared.items():
        found_ids = [ids.get(name, []) for name in names.split("; ")]
        if label not in folder_of or any(len(one) != 1 for one in found_ids):
            raise DataError(
                f"{shared_file.name}: {shortened(label, 40)!r} has no folder in {_FOLDERS}, or not one line in "
                f"{_NAMES} for each of {shortened(names, 100)!r}"
            )
        classes[folder_of[label]] = tuple(sorted(one[0] for one in found_ids))
    return ObjectNet(folders, classes, frozenset(paths.values()))


def plan_objectnet(files: SourceFiles, options: IngestOptions, objectnet: ObjectNet) -> Plan:
    """Plan the images of the classes that ImageNet has; those of the others are lost rows.

    The label of an image is the set of its classes of ImageNet, all of which count as right: the rank of the likeliest
    one is the same as if ObjectNet's classes had the similarity of their best class, as in wise-ft. With
    ``own_classes`` it is one of ObjectNet's 113 classes, whose names CLIP_benchmark scores.
    """
    folders = sorted(objectnet.ids)
    ids = sorted({one for found in objectnet.ids.values() for one in found})
    images = [file for file in files.own if is_image_name(file.name)]
    rows: list[ListedRow | Lost] = []
    for file in images:
        folder, _, base = file.name.rpartition("/")
        folder = folder.rpartition("/")[2]
        key = f"{folder}/{base}" if folder else base
        if folder in objectnet.ids:
            labels = (folders.index(folder),) if options.own_classes else tuple(map(ids.index, objectnet.ids[folder]))
            rows.append(ListedRow(key=key, path=file.path, label=one_label(labels)))
        elif folder in objectnet.folders:
            rows.append(Lost(reason=NO_CLASS, key=key, detail=f"{folder} is no class of ImageNet"))
        else:
            rows.append(Lost(reason=NO_CLASS_FOLDER, key=key))
    parts = list_parts(rows, [file.size for file in images], source=files.place.url, options=options)
    read = {*objectnet.files, *(file.path for file in images)}
    names = tuple(objectnet.folders[one].lower() for one in folders) if options.own_classes else tuple(ids)
    labeled = "its own names" if options.own_classes else "ImageNet's classes, some with several"
    digest = hashlib.sha256(digest_of(images).encode())
    digest.update(repr(sorted(objectnet.ids.items())).encode())
    return Plan(
        parts=tuple(replace(part, border=BORDER) for part in parts),
        class_names=names,
        info={
            "layout": f"ObjectNet: {counted(len(folders), 'folder')} of classes that ImageNet has, labeled with "
            f"{labeled}; {BORDER} pixels were cut from each side of every image",
            **ignored_files(file for file in files.found if file.path not in read),
        },
        digest=digest.hexdigest(),
    )


def without_border(data: bytes, border: int) -> bytes:
    """The image without ``border`` pixels on each side, as a PNG with the same pixels.

    An image that cannot be decoded, or has no pixel inside the border, is returned unchanged.
    """
    try:
        pixels = decode_image(data)
    except DataError:
        return data  # the check of the row gives the reason
    inside = pixels[border:-border, border:-border]
    if not inside.size:
        return data
    file = io.BytesIO()
    Image.fromarray(inside).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _ids_by_name(place: Place, names_path: str, numbers_path: str) -> dict[str, list[str]]:
    """The WordNet ids of ImageNet's classes by name: the names are in another order, which the numbers give."""
    names = [line.strip() for line in _content(place, names_path).decode(errors="replace").splitlines()]
    numbers = _json(place, numbers_path)
    ids: dict[str, list[str]] = {}
    for rank, one in enumerate(wordnet_ids()):
        number = numbers.get(str(rank))
        if type(number) is not int or not 0 <= number < len(names):
            raise DataError(
                f"{numbers_path} gives {shortened(repr(number), 40)} for class {rank}, expected a line of "
                f"{names_path}, counted from 0"
            )
        ids.setdefault(names[number], []).append(one)
    return ids


def _texts(place: Place, path: str) -> dict[str, str]:
    found = _json(place, path)
    if not all(isinstance(value, str) for value in found.values()):
        raise DataError(f"{path} must be a map of texts")
    return cast(dict[str, str], found)


def _json(place: Place, path: str) -> dict[str, object]:
    try:
        parsed: object = json.loads(_content(place, path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON: {shortened(str(error), 200)}") from error
    if not isinstance(parsed, dict):
        raise DataError(f"{path} must be a map")
    return cast(dict[str, object], parsed)


def _content(place: Place, path: str) -> bytes:
    try:
        return bytes(place.fs.cat_file(path))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
