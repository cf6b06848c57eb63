"""Source ``img2dataset``: the output of that tool in each of its forms, and other TFRecord files of ``tf.Example``s.

A shard is ``00012.tar``, ``00012.tfrecord``, or ``00012.parquet`` with images in it or in the folder ``00012``. Next to
each is ``00012_stats.json``, and next to a tar or TFRecord file a ``00012.parquet`` without images. The readers are
those of the forms; the name of a file decides which one reads it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from clipa_eqx.errors import DataError, counted
from conversion.records.listing import FoundFile, list_folders
from conversion.records.options import IngestOptions
from conversion.records.places import Place, is_pattern
from conversion.records.rows import Lost, Part, Plan, Row, Tally
from conversion.records.sources.arrow import holds_bytes
from conversion.records.sources.columns import is_image_name
from conversion.records.sources.parquet import PARQUET, read_schema
from conversion.records.sources.plain_tfrecords import is_tfrecord_name, plan_tfrecords, read_plain_tfrecords
from conversion.records.sources.planning import ignored_files
from conversion.records.sources.source import Source, SourceFiles, WrongKind, check_package, is_installed
from conversion.records.sources.splits import choose_split, has_splits
from conversion.records.sources.tfds import TFDS
from conversion.records.sources.tfrecords import PACKAGE
from conversion.records.sources.webdataset import WEBDATASET

STATISTICS = "_stats.json"
"""End of the names of the files with the numbers of a shard's downloads."""

_TABLE = ".parquet"
_COLUMNS = {"key", "status"}  # every table of img2dataset has them
_NEXT_TO_IMAGES = (".txt", ".json")


def companions(found: Sequence[FoundFile]) -> set[str]:
    """Paths of the files that img2dataset writes next to shards: statistics, and tables without images."""
    shards = {_stem(file) for file in found if _is_shard(file.name)}
    return {
        file.path
        for file in found
        if file.name.endswith(STATISTICS) or (_is_table(file.name) and _stem(file) in shards)
    }


def _is_shard(name: str) -> bool:
    return WEBDATASET.owns(name) or is_tfrecord_name(name)


def _is_table(name: str) -> bool:
    return name.lower().endswith(_TABLE)


def _plan(files: SourceFiles, options: IngestOptions) -> Plan:
    """Plan the one form that the files have.

    Raises:
        WrongKind: the tables are not img2dataset's, or the files are several splits of a TFDS data set.
        DataError: there are several forms or splits, a package is not installed, or the planner of the form refuses the
            files.
    """
    if has_splits(files) and options.split is None and all(TFDS.owns(file.name) for file in files.own):
        raise WrongKind
    split = choose_split(files, options)
    plan = _plan_form(split.files, options)
    return replace(plan, info={**plan.info, **split.info})


def _plan_form(files: SourceFiles, options: IngestOptions) -> Plan:
    tars = [file for file in files.own if WEBDATASET.owns(file.name)]
    examples = [file for file in files.own if is_tfrecord_name(file.name)]
    tables = [file for file in files.own if _is_table(file.name)]
    strays = [file for file in tables if _is_own_table(files.place, file)] if tars or examples else []
    _check_one_form(
        files.place, {"tar file": tars, "TFRecord file": examples, ".parquet file of no such shard": strays}
    )
    if tars:
        return WEBDATASET.plan(replace(files, own=tars), options)
    if examples:
        check_package("img2dataset", PACKAGE)
        return plan_tfrecords(replace(files, own=examples), options)
    check_package("img2dataset", PARQUET.package)
    return _plan_tables(files, options)


def _plan_tables(files: SourceFiles, options: IngestOptions) -> Plan:
    """Plan tables with images in them, or in folders of their names."""
    place, tables = files.place, files.own
    schema = next((schema for table in tables if (schema := _schema(place, table)) is not None), None)
    if schema is not None and not _COLUMNS.issubset(schema.names):
        raise WrongKind
    folders = _folders(files)
    with_folder = [table for table in tables if _stem(table) in folders]
    if not with_folder:
        return PARQUET.plan(files, options)
    # A table without a folder may also have no image at all: a bucket has no empty folders.
    others = [table for table in tables if _stem(table) not in folders and _holds_images(place, table)]
    _check_one_form(
        place, {".parquet file with a folder of images": with_folder, ".parquet file with images in it": others}
    )
    # The tables have the captions and the metadata too.
    found = [file for file in files.found if not (_folder(file) in folders and file.name.endswith(_NEXT_TO_IMAGES))]
    plan = PARQUET.plan(replace(files, found=found), options)
    # A folder whose table is missing was not finished by img2dataset.
    stems, own = {_stem(table) for table in tables}, {table.path for table in tables}
    left = [
        file for file in found if file.path not in own and not (is_image_name(file.name) and _folder(file) in stems)
    ]
    plan = replace(plan, info={**plan.info, **ignored_files(left)})
    if options.image_column is not None:
        return plan
    # A column with paths is one of the list that was downloaded.
    parts = tuple(replace(part, columns=replace(part.columns, path=None)) for part in plan.parts)
    return replace(plan, parts=parts, columns={use: name for use, name in plan.columns.items() if use != "path"})


def _check_one_form(place: Place, forms: Mapping[str, Sequence[FoundFile]]) -> None:
    held = {name: files for name, files in forms.items() if files}
    if len(held) > 1:
        shown = " and ".join(f"{counted(len(files), name)} (such as {files[0].name})" for name, files in held.items())
        raise DataError(
            f"{place.url} holds several forms of img2dataset's output: {shown}; convert each by itself: give its "
            "folder, or a pattern in quotes, such as 'folder/*.tar'"
        )


def _is_own_table(place: Place, table: FoundFile) -> bool:
    """Check whether a table that is not next to a shard is of img2dataset, and not the list that was downloaded."""
    if not _stem(table).rpartition("/")[2].isdigit():
        return False
    if not is_installed(PARQUET.package):
        return True
    schema = _schema(place, table)
    return schema is None or _COLUMNS.issubset(schema.names)


def _holds_images(place: Place, table: FoundFile) -> bool:
    schema = _schema(place, table)
    return schema is not None and any(holds_bytes(field.type) for field in schema)


def _schema(place: Place, table: FoundFile) -> Any:
    return read_schema(place, table.path)


def _folders(files: SourceFiles) -> set[str]:
    """Names of the folders of images; of all folders next to the tables if the source is a pattern or a file."""
    place = files.place
    if not is_pattern(place) and not place.fs.isfile(place.path):
        return {_folder(file) for file in files.found if is_image_name(file.name)}
    found: set[str] = set()
    for folder in {_folder(table) for table in files.own}:
        table = next(table for table in files.own if _folder(table) == folder)
        names = list_folders(place._replace(path=table.path.rpartition("/")[0]))
        found |= {f"{folder}/{name}" if folder else name for name in names}
    return found


def _folder(file: FoundFile) -> str:
    return file.name.rpartition("/")[0]


def _stem(file: FoundFile) -> str:
    """The name of a shard without its suffixes, with its folder."""
    folder, slash, base = file.name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def _read(place: Place, part: Part, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    """The rows of a shard, as its form has them."""
    if WEBDATASET.owns(part.path):
        return WEBDATASET.read(place, part, options, tally)
    if _is_table(part.path):
        return PARQUET.read(place, part, options, tally)
    return read_plain_tfrecords(place, part, options, tally)


IMG2DATASET = Source(
    help="img2dataset's shards in any of its forms, and other TFRecords of tf.Examples, such as ImageNet's",
    files="shards of img2dataset (.tar, .tfrecord, .parquet with the columns key and status)",
    owns=lambda name: _is_shard(name) or _is_table(name),
    plan=_plan,
    read=_read,
    marks=(".tfrecord",),
    has_prefix=True,
    split_help="train, test, ...; A,B for several",
)
