"""Source ``imagenet``: ImageNet and its evaluation sets in the layouts in which they are downloaded.

The class of an image is, in this order, the WordNet id that its folder or archive is named by, the number in its name
(``ILSVRC2012_val_00000001.JPEG``) looked up in the devkit, Kaggle's table or ``--labels``, or the class number that its
folder is named by, as in ImageNetV2. ObjectNet has a mapping of its own.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from clipa_eqx.errors import DataError, counted
from clipa_eqx.evals.prompts import wordnet_ids
from conversion.records.listing import check_readable
from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.rows import (
    MISSING_LABEL,
    NO_CLASS_FOLDER,
    ListedRow,
    Lost,
    Part,
    Plan,
    Row,
    Tally,
    one_label,
    printable,
)
from conversion.records.sources.columns import is_image_name
from conversion.records.sources.damage import Damaged, with_lost_rest
from conversion.records.sources.imagenet_names import NamedImage, choose_split, class_of, images_of, key_of, number_of
from conversion.records.sources.imagenet_numbers import (
    VALIDATION_IMAGES,
    NumberedLabels,
    find_labels,
    is_devkit,
    is_label_file,
    read_label_list,
)
from conversion.records.sources.images import read_image
from conversion.records.sources.listed import list_parts
from conversion.records.sources.objectnet import plan_objectnet, read_objectnet, without_border
from conversion.records.sources.planning import digest_of, ignored_files
from conversion.records.sources.source import Source, SourceFiles, WrongKind
from conversion.records.sources.tars import DAMAGE, TAR_SUFFIXES, read_contents

_DEVKIT_FOLDER = re.compile(r"(^|/)[^/]*devkit", re.IGNORECASE)


class _Labels(NamedTuple):
    """The decision which classes a source has, and how an image gets its labels.

    Attributes:
        ranks: labels by WordNet id, in their order.
        numbered: labels by number of the image; None if no image needs them.
        only_numbered: whether folders and archives do not matter.
    """

    ranks: Mapping[str, int]
    numbered: NumberedLabels | None
    only_numbered: bool

    def of(self, name: str) -> tuple[int, ...]:
        """The labels of an image by its name in the source; empty if it has none."""
        folder, number = None if self.only_numbered else class_of(name), number_of(name)
        if folder is not None and not folder.isdecimal():
            return (self.ranks[folder],) if folder in self.ranks else ()
        if number is not None and self.numbered is not None:
            return self.numbered.by_number.get(number, ())
        return () if folder is None else (int(folder),)


def _plan(files: SourceFiles, options: IngestOptions) -> Plan:
    """Plan parts of ``records_per_shard`` image files, and one part for each archive.

    Raises:
        WrongKind: there are no images or archives.
        DataError: there are several sets or splits, labels are missing, or a list of labels does not fit.
    """
    place = files.place
    own = [file for file in files.own if not is_devkit(file.name)]
    if not any(is_image_name(file.name) or file.name.lower().endswith(TAR_SUFFIXES) for file in own):
        raise WrongKind
    check_readable(place, files.own)
    if (objectnet := read_objectnet(place, files.found)) is not None:
        return plan_objectnet(files, options, objectnet)
    if options.own_classes:
        raise DataError(f"--own-classes is for ObjectNet, and {place.url} has none of its mappings")
    every = images_of(place, own, split=options.split)
    images = choose_split(every, split=options.split, where=place.url)
    labels = _choose_labels(images, files, options)
    rows = [_row(image, labels) for image in images]
    loose = [(row, image.file.size) for row, image in zip(rows, images, strict=True) if image.member is None]
    parts = [
        *list_parts([one[0] for one in loose], [one[1] for one in loose], source=place.url, options=options),
        *_archives(rows, images),
    ]
    read = {image.file.path for image in every}
    digest = hashlib.sha256(digest_of({image.file.path: image.file for image in images}.values()).encode())
    for row in rows:
        digest.update(f"{row.key}\0{row.label}\0".encode(errors="backslashreplace"))
    return Plan(
        parts=tuple(parts),
        class_names=tuple(labels.ranks),
        info={
            "layout": _describe(images, labels),
            **ignored_files(file for file in files.found if file.path not in read and not _is_known(file.name)),
        },
        digest=digest.hexdigest(),
    )


def _is_known(name: str) -> bool:
    return is_label_file(name) or _DEVKIT_FOLDER.search(name) is not None


def _choose_labels(images: Sequence[NamedImage], files: SourceFiles, options: IngestOptions) -> _Labels:
    url = files.place.url
    folders = {folder for image in images if (folder := class_of(image.name)) is not None}
    ids = {folder for folder in folders if not folder.isdecimal()}
    by_number = [image for image in images if number_of(image.name) is not None]
    if options.labels is not None:
        if not by_number:
            raise DataError(
                f"--labels {options.labels}: none of the {counted(len(images), 'image')} of {url} is named like the "
                "validation images of ImageNet, ILSVRC2012_val_00000001.JPEG, so no number is known"
            )
        return _Labels(_ranks(wordnet_ids()), read_label_list(options.labels), only_numbered=True)
    loose = [image for image in by_number if (class_of(image.name) or "0").isdecimal()]
    numbered = find_labels(files.place, files.found) if loose else None
    if loose and numbered is None:
        raise DataError(
            f"{url} has {counted(len(loose), 'validation image')} by number, such as {loose[0].name}, and no labels "
            "for them; give a folder that also holds the devkit (ILSVRC2012_devkit_t12.tar.gz, or its folder) or "
            "Kaggle's LOC_val_solution.csv, or sort the images into a folder per WordNet id"
        )
    if not folders and not loose:
        raise WrongKind(
            "no image is in a folder or archive named by a WordNet id such as n01440764 or by a class number, or is "
            f"named like ILSVRC2012_val_00000001.JPEG, in {url}"
        )
    has_all = bool(loose) or ids != folders
    return _Labels(_ranks(wordnet_ids() if has_all else sorted(ids)), numbered, only_numbered=False)


def _ranks(ids: Iterable[str]) -> Mapping[str, int]:
    return {one: rank for rank, one in enumerate(ids)}


def _row(image: NamedImage, labels: _Labels) -> ListedRow:
    path = image.file.path if image.member is None else image.member
    return ListedRow(key=key_of(image.name), path=path, label=one_label(labels.of(image.name)))


def _archives(rows: Sequence[ListedRow], images: Sequence[NamedImage]) -> Iterator[Part]:
    """One part per archive, with a row for each of its images, or one with an empty path for all of them."""
    held: dict[str, list[ListedRow]] = {}
    for row, image in zip(rows, images, strict=True):
        if image.member is not None:
            held.setdefault(image.file.path, []).append(row)
    files = {image.file.path: image.file for image in images}
    for path, members in held.items():
        yield Part(source=files[path].name, path=path, size=files[path].size, rows=tuple(members))


def _describe(images: Sequence[NamedImage], labels: _Labels) -> str:
    numbers = [image for image in images if number_of(image.name) is not None]
    texts: list[str] = []
    if labels.numbered is not None:
        found = f"{len(numbers):,} of {VALIDATION_IMAGES:,}"
        texts.append(f"validation images of ImageNet by number, {found}, with the labels of {labels.numbered.where}")
    folders = {folder for image in images if (folder := class_of(image.name))} if not labels.only_numbered else set()
    ids = {folder for folder in folders if not folder.isdecimal()}
    if ids:
        texts.append(f"{counted(len(ids), 'folder')} by WordNet id")
    if len(ids) < len(folders) and labels.numbered is None:
        texts.append(f"{counted(len(folders) - len(ids), 'folder')} by class number of ImageNet")
    return "; ".join(texts)


def _read(place: Place, part: Part, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    if part.path:
        return with_lost_rest(_read_archive(place, part, options, tally), part)
    return _read_files(place, part, options)


def _read_files(place: Place, part: Part, options: IngestOptions) -> Iterator[Row | Lost]:
    for row in part.rows or ():
        if isinstance(row, Lost):
            yield row
        elif not row.labels:
            yield _unlabeled(row.key, options)
        else:
            image = read_image(place, row.path)
            if part.border and isinstance(image, bytes):
                image = without_border(image, part.border)
            yield Row(key=row.key, image=image, labels=row.labels)


def _read_archive(place: Place, part: Part, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    rows = {row.path: row for row in part.rows or () if isinstance(row, ListedRow)}
    of_all = rows.get("")
    try:
        for header, content in read_contents(place, part.path, tally):
            name = header.member.name
            row = rows.get(name) or of_all
            if row is None or not is_image_name(name):
                tally.ignored_members += 1
                continue
            key = key_of(f"{of_all.key}{name}") if of_all else row.key
            if content is None:
                raise Damaged("the data of a member are cut", key=key)
            yield Row(key=key, image=content, labels=row.labels) if row.labels else _unlabeled(key, options)
    except DAMAGE as error:
        raise Damaged(str(error)) from error


def _unlabeled(key: str, options: IngestOptions) -> Lost:
    if options.labels is not None or number_of(key) is not None:
        return Lost(reason=MISSING_LABEL, key=printable(key))
    return Lost(reason=NO_CLASS_FOLDER, key=printable(key))


IMAGENET = Source(
    help="ImageNet, V2, A, R, Sketch, ReaL, ObjectNet as downloaded",
    files="images or tar files",
    owns=lambda name: is_image_name(name) or name.lower().endswith(TAR_SUFFIXES),
    plan=_plan,
    read=_read,
    marks=("ilsvrc2012_", "loc_val_solution.csv", "objectnet_to_imagenet_1k.json"),
    is_labeled=lambda options, columns: True,
    has_columns=False,
    has_label_flags=True,
    split_help="train or val, if the folder holds both",
)
