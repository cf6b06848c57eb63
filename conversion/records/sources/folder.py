"""Source ``folder``: a folder of images for each class, ImageNet style."""

from collections.abc import Iterator

from clipa_eqx.errors import DataError
from conversion.records.listing import FoundFile, list_folders
from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.rows import ListedRow, Lost, Part, Plan, Row, Tally, printable
from conversion.records.sources.columns import is_image_name
from conversion.records.sources.listed import list_parts, read_listed
from conversion.records.sources.planning import digest_of, ignored_files
from conversion.records.sources.source import Source, SourceFiles, WrongKind
from conversion.records.sources.text_tables import TABLE_SUFFIXES


def _plan(files: SourceFiles, options: IngestOptions) -> Plan:
    """Plan parts of ``records_per_shard`` images; a label is the rank of the first folder's name among all of them.

    Images deeper inside a class folder belong to it; one outside of any class folder is a lost row. A class folder
    without images keeps its number.

    Raises:
        WrongKind: there is no class folder, or only one with a list of captions next to it.
        DataError: a class name is not UTF-8.
    """
    place = files.place
    classes = sorted({file.name.partition("/")[0] for file in files.found if "/" in file.name} | list_folders(place))
    if not classes or (len(classes) == 1 and any(_is_list(file) for file in files.found)):
        raise WrongKind  # one folder of images with a list next to it is for `captions`
    if bad := [name for name in classes if printable(name) != name]:
        raise DataError(f"{place.url}: the class folder {printable(bad[0])} has a name that is not UTF-8; rename it")
    numbers = {name: number for number, name in enumerate(classes)}
    rows = [_row(file, numbers) for file in files.own]
    read = {file.path for file in files.own}
    return Plan(
        parts=list_parts(rows, [file.size for file in files.own], source=place.url, options=options),
        class_names=tuple(classes),
        info=ignored_files(file for file in files.found if file.path not in read),
        digest=digest_of(files.own),
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
    is_labeled=lambda options: True,
    may_be_empty=True,
    has_columns=False,
)
