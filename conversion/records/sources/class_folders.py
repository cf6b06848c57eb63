"""Folders of pictures with a folder per class, ImageNet style."""

from collections.abc import Iterator

from clipa_eqx.errors import DataError
from conversion.records.files import Found, Place, find_files
from conversion.records.rows import NO_CLASS_FOLDER, IngestOptions, ListedRow, Lost, Part, Plan, Row, printable
from conversion.records.sources.columns import IMAGE_SUFFIXES
from conversion.records.sources.images import read_picture
from conversion.records.sources.plans import digest_of, ignored_files, wrong_kind


def plan_folder(place: Place, *, options: IngestOptions) -> Plan:
    """Parts of `records_per_shard` pictures; a label is the rank of the first folder's name among all of them.

    Pictures deeper inside a class folder belong to it; one outside of any class folder is a lost row. A class folder
    without pictures keeps its number.

    Raises:
        DataError: there is no class folder, or only files that are no pictures, or a class name is not UTF-8.
    """
    found = find_files(place, may_be_empty=True)
    pictures = [file for file in found if file.name.lower().endswith(IMAGE_SUFFIXES)]
    classes = sorted({file.name.partition("/")[0] for file in found if "/" in file.name} | _folders(place))
    if not classes or (found and not pictures):
        raise wrong_kind(place, found, kind="folder", what="class folders with pictures")
    if bad := [name for name in classes if printable(name) != name]:
        raise DataError(f"{place.url}: the class folder {printable(bad[0])} has a name that is not UTF-8; rename it")
    numbers = {name: number for number, name in enumerate(classes)}
    rows = [_listed(file, numbers) for file in pictures]
    taken = {file.path for file in pictures}
    return Plan(
        parts=list_parts(rows, [file.size for file in pictures], source=place.url, options=options),
        class_names=tuple(classes),
        info=ignored_files(file for file in found if file.path not in taken),
        digest=digest_of(pictures),
    )


def list_parts(rows: list[ListedRow], sizes: list[int], *, source: str, options: IngestOptions) -> tuple[Part, ...]:
    """A list in memory cut into parts of `records_per_shard` rows."""
    step = options.records_per_shard
    return tuple(
        Part(source=f"{source}, rows {i} on", path="", size=sum(sizes[i : i + step]), rows=tuple(rows[i : i + step]))
        for i in range(0, len(rows), step)
    )


def read_listed(place: Place, part: Part, *, options: IngestOptions, labeled: bool) -> Iterator[Row | Lost]:
    """The rows of a list in memory with the pictures they name (see `read_picture`)."""
    for row in part.rows or ():
        if labeled and row.label is None:
            yield Lost(reason=NO_CLASS_FOLDER, key=row.key)
            continue
        image = read_picture(place, row.path, images=options.images)
        yield Row(key=row.key, image=image, captions=row.captions, label=row.label, extra=row.extra)


def _listed(file: Found, numbers: dict[str, int]) -> ListedRow:
    name, slash, _ = file.name.partition("/")
    return ListedRow(key=file.name, path=file.path, label=numbers[name] if slash else None)


def _folders(place: Place) -> set[str]:
    if not place.fs.isdir(place.path):
        return set()
    entries: list[dict[str, object]] = place.fs.ls(place.path, detail=True)
    return {str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"}
