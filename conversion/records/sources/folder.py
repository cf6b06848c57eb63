"""Source ``folder``: a folder of images for each class, ImageNet style."""

from collections.abc import Collection, Iterator, Sequence

from clipa_eqx.errors import DataError
from conversion.records.listing import FoundFile, is_hidden, list_folders
from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.rows import ListedRow, Lost, Part, Plan, Row, Tally, printable
from conversion.records.sources.columns import is_image_name
from conversion.records.sources.imagenet_names import class_of, number_of
from conversion.records.sources.listed import list_parts, read_listed
from conversion.records.sources.objectnet import is_mapping
from conversion.records.sources.planning import digest_of, ignored_files
from conversion.records.sources.source import Source, SourceFiles, WrongKind
from conversion.records.sources.splits import is_split_folder, is_word
from conversion.records.sources.text_tables import TABLE_SUFFIXES


def _plan(files: SourceFiles, options: IngestOptions) -> Plan:
    """Plan parts of ``records_per_shard`` images; a label is the rank of the first folder's name among all of them.

    Names that are all whole numbers are in the order of the numbers, other names in that of their characters. Images
    deeper inside a class folder belong to it; one outside of any class folder is a lost row. A class folder without
    images keeps its number.

    Raises:
        WrongKind: there is no class folder, or only one with a list of captions next to it; or images have their class
            in ImageNet's devkit or in ObjectNet's mappings.
        DataError: the class folders are splits, or a single folder that holds others; a class name is not UTF-8.
    """
    place = files.place
    if _is_for_imagenet(files.found):
        raise WrongKind
    named = {file.name.partition("/")[0] for file in files.found if "/" in file.name} | list_folders(place)
    classes = _in_order({name for name in named if not is_hidden(name)})
    if not classes or (len(classes) == 1 and any(_is_list(file) for file in files.found)):
        raise WrongKind  # one folder of images with a list next to it is for `captions`
    _check_level(place, files.own)
    if bad := [name for name in classes if printable(name) != name]:
        raise DataError(f"{place.url}: the class folder {printable(bad[0])} has a name that is not UTF-8; rename it")
    numbers = {name: number for number, name in enumerate(classes)}
    rows = [_row(file, numbers) for file in files.own]
    read = {file.path for file in files.own}
    return Plan(
        parts=list_parts(rows, [file.size for file in files.own], source=place.url, options=options),
        class_names=tuple(classes),
        info={**ignored_files(file for file in files.found if file.path not in read), **_empty(classes, files.own)},
        digest=digest_of(files.own),
    )


def _empty(classes: Sequence[str], images: Sequence[FoundFile]) -> dict[str, object]:
    """For the manifest: the class folders without images."""
    filled = {file.name.partition("/")[0] for file in images}
    empty = [name for name in classes if name not in filled]
    return {"classes_without_images": empty} if empty else {}


def _is_for_imagenet(files: Sequence[FoundFile]) -> bool:
    """Check whether the classes are in ObjectNet's mappings, or in the devkit of ImageNet: images without class folders
    that are named by number.
    """
    numbered = {file.name.partition("/")[0] for file in files if number_of(file.name) and class_of(file.name) is None}
    is_flat = any(number_of(name) or is_word(name) for name in numbered) or len(numbered) == 1
    return is_flat or any(is_mapping(file.name) for file in files)


def _in_order(names: Collection[str]) -> list[str]:
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _check_level(place: Place, images: Sequence[FoundFile]) -> None:
    """Refuse a folder above the class folders, whose folders would become the classes."""
    folders = sorted({file.name.partition("/")[0] for file in images if "/" in file.name})
    flat = {file.name.partition("/")[0] for file in images if file.name.count("/") == 1}
    splits = [name for name in folders if is_split_folder(name)]
    # A class may be called "train". Two such folders that hold only folders are splits, whatever is next to them.
    if splits and (splits == folders or len(set(splits) - flat) > 1):
        raise DataError(
            f"{place.url} holds the splits {', '.join(splits)}, which are no classes; give the folder of one split, "
            f"such as {place.url.rstrip('/')}/{splits[0]}, with a folder per class in it"
        )
    below = sorted({file.name.split("/")[1] for file in images if file.name.count("/") > 1})
    if len(folders) == 1 and len(below) > 1 and not flat:
        raise DataError(
            f"{place.url} holds one class folder with images, {printable(folders[0])}, which holds folders itself: "
            f"{', '.join(map(printable, below[:3]))}{', ...' if len(below) > 3 else ''}; give the folder in which each "
            "class has its folder"
        )


def _is_list(file: FoundFile) -> bool:
    return "/" not in file.name and file.name.lower().endswith(TABLE_SUFFIXES)


def _row(file: FoundFile, numbers: dict[str, int]) -> ListedRow:
    name, slash, _ = file.name.partition("/")
    return ListedRow(key=file.name, path=file.path, label=numbers[name] if slash else None)


def _read(place: Place, part: Part, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    return read_listed(place, part, options, labeled=True)


FOLDER = Source(
    help="a folder per class, ImageNet style",
    files="class folders with images",
    owns=is_image_name,
    plan=_plan,
    read=_read,
    marks=(".jpg", ".jpeg", ".png"),
    is_labeled=lambda options, columns: True,
    may_be_empty=True,
    has_columns=False,
)
