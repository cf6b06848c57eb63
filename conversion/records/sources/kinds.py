"""The table of all kinds of sources, and how a source is planned and its parts are read."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from clipa_eqx.data.manifest import MANIFEST_NAME
from clipa_eqx.errors import DataError
from conversion.records.class_names import check_class_names
from conversion.records.listing import FoundFile, find_files, is_hidden
from conversion.records.options import IngestOptions
from conversion.records.places import Place, open_place
from conversion.records.rows import Columns, Lost, Part, Plan, Row, Tally, printable
from conversion.records.sources.captions import CAPTIONS, is_list_name
from conversion.records.sources.columns import is_image_name
from conversion.records.sources.folder import FOLDER
from conversion.records.sources.imagenet import IMAGENET
from conversion.records.sources.img2dataset import IMG2DATASET, STATISTICS, companions
from conversion.records.sources.pairs import PAIRS
from conversion.records.sources.parquet import PARQUET
from conversion.records.sources.plain_tfrecords import is_tfrecord_name
from conversion.records.sources.planning import suffix_of
from conversion.records.sources.source import Source, SourceFiles, WrongKind, check_package
from conversion.records.sources.tfds import TFDS, notes_of_tfds
from conversion.records.sources.webdataset import WEBDATASET

# The order is that of ``--help``. It also decides between kinds that the files of a source suggest equally.
SOURCES: Mapping[str, Source] = {
    "img2dataset": IMG2DATASET,
    "webdataset": WEBDATASET,
    "parquet": PARQUET,
    "folder": FOLDER,
    "imagenet": IMAGENET,
    "pairs": PAIRS,
    "tfds": TFDS,
    "captions": CAPTIONS,
}


def source_of(kind: str) -> Source:
    """The description of a kind of source.

    Raises:
        DataError: there is no such kind.
    """
    if kind not in SOURCES:
        raise DataError(f"there is no kind of source {kind!r}; choose one of {', '.join(SOURCES)}")
    return SOURCES[kind]


def plan_source(place: Place, *, kind: str, options: IngestOptions) -> Plan:
    """Plan the parts of a source in order.

    Raises:
        DataError: the source is of another kind, empty or not readable, a package that reads it is not installed, its
            first rows lack a column, there is no folder ``images``, or the number of class names is not that of the
            classes.
    """
    source = source_of(kind)
    if options.images is not None:
        images = open_place(options.images)
        if images.is_local and not images.fs.isdir(images.path):
            raise DataError(f"--images: there is no folder {options.images}")
    listed = find_files(place, may_be_empty=source.may_be_empty)
    # A hidden file that the user names is meant.
    found = listed if place.fs.isfile(place.path) else [file for file in listed if not is_hidden(file.name)]
    aside = companions(found) | notes_of_tfds(found) if len(found) > 1 else set[str]()
    own = [file for file in found if source.owns(file.name) and file.path not in aside]
    files = SourceFiles(place=place, found=found, own=own)
    try:
        _check_no_records(place, listed)
        if listed and not files.own:
            raise WrongKind(_only_companions(files, aside) if any(source.owns(file.name) for file in found) else "")
        check_package(kind, source.package)
        plan = source.plan(files, options)
    except WrongKind as error:
        raise _wrong_kind(files, kind, str(error) or f"no {source.files} in {place.url}") from None
    check_class_names(options.class_names, plan.class_names, where=place.url)
    hidden = len(listed) - len(found)
    return replace(plan, info={**plan.info, "hidden_files": hidden}) if hidden else plan


def read_part(place: Place, part: Part, *, kind: str, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    """Read the rows of a part in order, with rows that cannot be read as lost rows.

    Raises:
        DataError: the part cannot be opened.
    """
    return source_of(kind).read(place, part, options, tally)


def is_labeled(kind: str, options: IngestOptions, columns: Columns) -> bool:
    """Check whether rows of the source need a label and may have no caption."""
    return source_of(kind).is_labeled(options, columns)


def counts_rows(kind: str, options: IngestOptions) -> bool:
    """Check whether progress is in rows; otherwise it is in bytes of the source."""
    return source_of(kind).sizes_are_rows or options.limit is not None


def _check_no_records(place: Place, listed: Sequence[FoundFile]) -> None:
    """Refuse a record folder as a source, which is likely the destination in the wrong place."""
    names = {file.name for file in listed}
    if MANIFEST_NAME in names and any(name.startswith("shard-") and name.endswith(".array_record") for name in names):
        raise DataError(f"{place.url} is a record folder, which a conversion writes; give the source first: SRC DST")


def _only_companions(files: SourceFiles, aside: Collection[str]) -> str:
    shown = next(file.name for file in files.found if file.path in aside)
    return f"in {files.place.url} files such as {printable(shown)} only describe the shards next to them"


def _wrong_kind(files: SourceFiles, kind: str, reason: str) -> DataError:
    counts = Counter(suffix_of(file.name) for file in files.found)
    bare = counts.pop("", 0)
    held = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common(5)) or "no"
    rest = f" and {bare:,} without a suffix" if bare else ""
    advice = _advice([file.name.lower() for file in files.found], kind)
    return DataError(f"source {kind}: {reason}; it holds {held} files{rest}; {advice}")


def _advice(names: Sequence[str], kind: str) -> str:
    """The next thing to try for files of these names in lower case, after ``kind`` was the wrong one."""
    images = [name for name in names if is_image_name(name)]
    likely = (
        ("imagenet", any(mark in name for name in names for mark in IMAGENET.marks)),
        ("img2dataset", any(name.endswith(STATISTICS) for name in names)),
        ("tfds", any(TFDS.owns(name) for name in names) and (kind == "img2dataset" or _is_of_tfds(names))),
        ("pairs", _has_texts(names)),
        ("captions", bool(images) and any(map(is_list_name, names))),
    )
    better = next((other for other, fits in likely if fits and other != kind), None)
    if better is None and images and not any("/" in name for name in images):
        return (
            "captions need a list in one file for the source `captions`, such as a CSV file with the columns file and "
            "caption, or a .txt file next to each image, for `pairs`; for labels instead of captions put the images "
            "into a folder per class, for `folder`"
        )
    better = better or _suggested(names, kind)
    return f"is it for the source `{better}`?" if better else "is it the right folder?"


def _is_of_tfds(names: Sequence[str]) -> bool:
    files = ("dataset_info.json", "features.json")
    return any(name.endswith(files) or (TFDS.owns(name) and not is_tfrecord_name(name)) for name in names)


def _has_texts(names: Sequence[str]) -> bool:
    """Check whether text or JSON files are next to images under the same names."""
    stems = {name.rpartition(".")[0] for name in names if is_image_name(name)}
    return any(name.endswith((".txt", ".json")) and name.rpartition(".")[0] in stems for name in names)


def _suggested(names: Sequence[str], kind: str) -> str | None:
    """The other kind whose marks are in most file names; the first of several."""
    votes = {
        name: sum(any(mark in one for mark in other.marks) for one in names)
        for name, other in SOURCES.items()
        if name != kind
    }
    if "img2dataset" in votes:
        votes["img2dataset"] = sum(map(is_tfrecord_name, names))
    most = max(votes, key=lambda one: votes[one])
    return most if votes[most] else "captions" if kind != "captions" and any(map(CAPTIONS.owns, names)) else None
