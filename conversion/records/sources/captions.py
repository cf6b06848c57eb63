"""Source ``captions``: lists of images and captions, in JSON, CSV, TSV or JSONL."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from clipa_eqx.errors import DataError
from conversion.records.listing import FoundFile, check_readable
from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.reading import open_file
from conversion.records.rows import Columns, Lost, Part, Plan, Row, Tally, printable
from conversion.records.sources.columns import check_values, is_image_name
from conversion.records.sources.json_lists import plan_json
from conversion.records.sources.listed import read_listed, spelled
from conversion.records.sources.planning import digest_of, ignored_files, named_columns
from conversion.records.sources.source import Source, SourceFiles, WrongKind
from conversion.records.sources.splits import choose_split, has_splits
from conversion.records.sources.table_lists import plan_table, read_table
from conversion.records.sources.text_tables import TABLE_SUFFIXES, TEXT_SUFFIXES, read_format


def _plan(files: SourceFiles, options: IngestOptions) -> Plan:
    """Plan all lists of the source, in order. Images among its files count as part of it.

    Raises:
        WrongKind: no file is a list.
        DataError: a list cannot be read or understood, or lacks a column; there are several splits and none is chosen.
    """
    files = replace(files, own=_lists(files))
    split_info: Mapping[str, object] = {}
    if has_splits(files):  # of files, not of entries
        split = choose_split(files, options)
        files, options, split_info = split.files, replace(options, split=None), split.info
    lists = files.own
    check_readable(files.place, lists)
    images = [file for file in files.found if is_image_name(file.name)]
    digest = hashlib.sha256(digest_of(images).encode())
    parts: list[Part] = []
    unlisted = 0
    columns: dict[str, dict[str, object]] = {}
    # With a split, the others are in lists that are not read.
    left = set() if options.images or split_info or options.split else {spelled(file.path) for file in images}
    has_folders = len({_folder(file) for file in files.own}) > 1 and not options.images and not options.key_column
    for file in lists:
        plan = plan_json if file.name.lower().endswith(".json") else plan_table
        listed = plan(files.place, file, options, key_folder=_folder(file) if has_folders else "", left=left)
        ids = Columns(subset=listed.columns.subset)  # rows that have been read already need no other column
        parts += [part if part.rows is None else replace(part, columns=ids) for part in listed.parts]
        unlisted += listed.unlisted
        for piece in listed.content:
            digest.update(piece)
        if listed.names:
            if not columns:
                check_values(listed.names, options=options, where=file.path)
            columns[printable(file.name)] = named_columns(listed.columns)
    info = {**split_info, **ignored_files(set(files.found) - set(lists) - set(images))}
    if unlisted:
        info["captions_of_unlisted_pictures"] = unlisted  # the word of version 0.1.0, as every manifest has it
    if left and parts:
        info["images_in_no_list"] = len(left)
    alike = all(one == next(iter(columns.values())) for one in columns.values())
    return Plan(
        parts=tuple(parts),
        info=info,
        digest=digest.hexdigest(),
        columns=next(iter(columns.values()), {}) if alike else columns,
    )


def _lists(files: SourceFiles) -> list[FoundFile]:
    """The files that are lists. Texts are, if the source has no other lists, and their first line is that of a list."""
    usual = [file for file in files.own if not file.name.lower().endswith(TEXT_SUFFIXES)]
    if usual:
        return usual
    if files.place.fs.isfile(files.place.path):
        if not _starts_as_list(files.place, files.own[0], needs_usual_names=False):
            raise DataError(
                f"{files.own[0].path} is no list of images and captions: its first line has neither columns such as "
                "image and caption, with commas or tabs between them, nor an image with #0, a tab and a caption; for "
                "a .txt file next to each image give their folder to the source `pairs`"
            )
        return list(files.own)
    stems = {_stem(file) for file in files.found if is_image_name(file.name)}
    lists = [file for file in files.own if _stem(file) not in stems and _starts_as_list(files.place, file)]
    if not lists:
        raise WrongKind
    return lists


def is_list_name(name: str) -> bool:
    """Check whether a file of this name in lower case is likely a list."""
    is_text = name.endswith(TEXT_SUFFIXES) and re.search(r"caption|token", name.rpartition("/")[2]) is not None
    return is_text or name.endswith((".json", *TABLE_SUFFIXES))


def _starts_as_list(place: Place, file: FoundFile, *, needs_usual_names: bool = True) -> bool:
    with open_file(place, file.path) as opened:
        try:
            table = read_format(opened, file.path)
        except DataError:  # a list is refused again when it is planned
            return not needs_usual_names
    return table.is_list or (not needs_usual_names and len(table.names) > 1)


def _stem(file: FoundFile) -> str:
    return file.name.rpartition("/")[2].partition(".")[0]


def _folder(file: FoundFile) -> str:
    return "".join(file.name.rpartition("/")[:2])


def _read(place: Place, part: Part, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    if part.lines is None:
        return read_listed(place, part, options, labeled=False)
    return read_table(place, part, options)


CAPTIONS = Source(
    help="a list of images and captions: COCO or Karpathy JSON, CSV, TSV, JSONL, texts of Flickr8k and Flickr30k",
    files="lists (.json, .csv, .tsv, .jsonl; .txt and .token that begin as a list)",
    owns=lambda name: name.lower().endswith((".json", *TABLE_SUFFIXES, *TEXT_SUFFIXES)),
    plan=_plan,
    read=_read,
    marks=(".csv", ".tsv", ".jsonl"),
    sizes_are_rows=True,
    has_images=True,
    split_help="train, test, ...; A,B for several",
)
