"""Source ``captions``: lists of images and captions, in JSON, CSV, TSV or JSONL."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from conversion.records.listing import FoundFile, check_readable
from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.rows import Lost, Part, Plan, Row, Tally, printable
from conversion.records.sources.columns import check_kept, is_image_name
from conversion.records.sources.json_lists import plan_json
from conversion.records.sources.listed import read_listed
from conversion.records.sources.planning import digest_of, ignored_files, named_columns
from conversion.records.sources.source import Source, SourceFiles
from conversion.records.sources.splits import choose_split, has_splits
from conversion.records.sources.table_lists import plan_table, read_table
from conversion.records.sources.text_tables import TABLE_SUFFIXES


def _plan(files: SourceFiles, options: IngestOptions) -> Plan:
    """Plan all lists of the source, in order. Images among its files count as part of it."""
    if has_splits(files):  # of files, not of entries
        split = choose_split(files, options)
        files, options = split.files, replace(options, split=None)
        split_info = split.info
    else:
        split_info = {}
    check_readable(files.place, files.own)
    images = [file for file in files.found if is_image_name(file.name)]
    digest = hashlib.sha256(digest_of(images).encode())
    parts: list[Part] = []
    unlisted = 0
    columns: dict[str, dict[str, object]] = {}
    has_folders = len({_folder(file) for file in files.own}) > 1 and not options.images and not options.key_column
    for file in files.own:
        plan = plan_json if file.name.lower().endswith(".json") else plan_table
        listed = plan(files.place, file, options, key_folder=_folder(file) if has_folders else "")
        parts += listed.parts
        unlisted += listed.unlisted
        for piece in listed.content:
            digest.update(piece)
        if listed.names:
            if not columns:
                check_kept(listed.names, options=options, where=file.path)
            columns[printable(file.name)] = named_columns(listed.columns)
    info = {**split_info, **ignored_files(set(files.found) - set(files.own) - set(images))}
    if unlisted:
        info["captions_of_unlisted_pictures"] = unlisted  # the word of version 0.1.0, as every manifest has it
    alike = all(one == next(iter(columns.values())) for one in columns.values())
    return Plan(
        parts=tuple(parts),
        info=info,
        digest=digest.hexdigest(),
        columns=next(iter(columns.values()), {}) if alike else columns,
    )


def _folder(file: FoundFile) -> str:
    return "".join(file.name.rpartition("/")[:2])


def _read(place: Place, part: Part, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    if part.lines is None:
        return read_listed(place, part, options, labeled=False)
    return read_table(place, part, options)


CAPTIONS = Source(
    help="a list of images and captions: COCO or Karpathy JSON, CSV, TSV, JSONL",
    files="lists (.json, .csv, .tsv, .jsonl)",
    owns=lambda name: name.lower().endswith((".json", *TABLE_SUFFIXES)),
    plan=_plan,
    read=_read,
    marks=(".csv", ".tsv", ".jsonl"),
    sizes_are_rows=True,
    has_images=True,
    split_help="train, test, ...; A,B for several",
)
