"""Source ``tfds``: one data set of TensorFlow Datasets, a folder of TFRecord files named by split and shard."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from clipa_eqx.errors import DataError
from clipa_eqx.evals.prompts import parse_class_names
from conversion.records.listing import FoundFile
from conversion.records.options import IngestOptions
from conversion.records.places import Place, is_pattern
from conversion.records.reading import unreadable
from conversion.records.rows import Lost, Part, Plan, Row, Tally
from conversion.records.sources.columns import KEY_COLUMNS
from conversion.records.sources.damage import with_lost_rest
from conversion.records.sources.example_proto import Features
from conversion.records.sources.examples import choose_features, read_examples, read_features
from conversion.records.sources.planning import Choice, files_next_to, plan_files
from conversion.records.sources.row_counts import as_count
from conversion.records.sources.source import Source, SourceFiles
from conversion.records.sources.tfrecords import PACKAGE, read_tfrecords
from conversion.records.sources.values import from_json

_NAME = re.compile(r"^(?P<data>.+)-(?P<split>[^-.]+)\.tfrecord-(?P<shard>\d+)-of-(?P<shards>\d+)$")
_INFO = "dataset_info.json"
_NOTES = (_INFO, "features.json", "metadata.json", ".labels.txt")

Shards = Mapping[FoundFile, re.Match[str]]


def _plan(files: SourceFiles, options: IngestOptions) -> Plan:
    """Plan one part per shard of a split; class names come from ``label.labels.txt`` if it is present.

    Raises:
        DataError: several data sets, several splits and none chosen, no such split, a shard is missing, class names
            that are not UTF-8, or the first examples lack a column.
    """
    place = files.place
    shards = {file: match for file in files.own if (match := _match(file.name))}
    split = _choose_split(place, shards, options)
    others = {file for file, match in shards.items() if match["split"] != split}
    files = replace(
        files,
        found=[file for file in files.found if file not in others],
        own=[file for file in files.own if file not in others],
    )
    _check_complete(place, {file: shards[file] for file in files.own})
    is_labeled = _is_labeled(options)
    names = f"{options.label_column or 'label'}.labels.txt"

    def choose(examples: Iterator[Features]) -> Choice:
        columns = choose_features(
            examples,
            options=options,
            label=("label",) if is_labeled else (),
            key=("file_name", *KEY_COLUMNS) if is_labeled else KEY_COLUMNS,
            where=f"the first examples of {place.url}",
        )
        file = next((file for file in files.found if file.name.rpartition("/")[2] == names), None)
        return Choice(columns, None if file is None else _class_names(place, file.path))

    about = [file for file in files.found if file.name.endswith(_NOTES)]
    counts = files_next_to(files, lambda _: _INFO)
    return plan_files(
        files,
        first=lambda part: read_features(read_tfrecords(place, part.path)),
        choose=choose,
        about=list({file.path: file for file in (*about, *counts)}.values()),
        info={"split": split},
    )


def _match(name: str) -> re.Match[str] | None:
    return _NAME.match(name.rpartition("/")[2])


def _choose_split(place: Place, shards: Shards, options: IngestOptions) -> str:
    sets = sorted({f"{file.name[: -len(match[0])]}{match['data']}" for file, match in shards.items()})
    if len(sets) > 1:
        raise DataError(f"{place.url} holds several data sets, give the folder of one: {', '.join(sets[:5])}")
    splits = sorted({match["split"] for match in shards.values()})
    if options.split is not None and options.split not in splits:
        raise DataError(f"{place.url} has no split {options.split!r}; it has: {', '.join(splits)}")
    if options.split is None and len(splits) > 1:
        raise DataError(f"{place.url} holds several splits, choose one with --split: {', '.join(splits)}")
    return options.split or splits[0]


def _check_complete(place: Place, shards: Shards) -> None:
    missing: list[str] = []
    by_set: dict[tuple[str, int], set[int]] = {}
    for file, match in shards.items():
        folder = file.path.rpartition("/")[0]
        by_set.setdefault((f"{folder}/{match['data']}-{match['split']}", int(match["shards"])), set()).add(
            int(match["shard"])
        )
    for (name, count), have in by_set.items():
        missing += [f"{name}.tfrecord-{i:05d}-of-{count:05d}" for i in range(count) if i not in have]
    if missing and not is_pattern(place) and not place.fs.isfile(place.path):
        shown = ", ".join(missing[:3])
        raise DataError(f"{place.url} lacks {len(missing)} of its shards: {shown}{', ...' if len(missing) > 3 else ''}")


def _class_names(place: Place, path: str) -> tuple[str, ...]:
    try:
        content: bytes = place.fs.cat_file(path)
    except OSError as error:
        raise unreadable(path, error) from error
    return parse_class_names(content, where=path)


def _is_labeled(options: IngestOptions) -> bool:
    return options.label_column is not None or options.caption_column is None


def _read(place: Place, part: Part, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    """The examples of a shard in order, with one lost row for the rest of a shard that is cut or damaged.

    The label is ``label``; the key is ``file_name``, else ``id``, else split, shard and row.
    """
    rows = read_examples(read_tfrecords(place, part.path), part, options)
    return with_lost_rest(rows, part, expected=_count(place, part))


def _count(place: Place, part: Part) -> int | None:
    """Number of rows of a shard by ``dataset_info.json``; None without a valid one."""
    folder, _, base = part.path.rpartition("/")
    match = _match(base)
    path = f"{folder}/{_INFO}"
    if match is None or not place.fs.exists(path):
        return None
    try:
        content: Any = from_json(place.fs.cat_file(path))
        (split,) = (split for split in content["splits"] if split["name"] == match["split"])
        lengths = split["shardLengths"]
        return as_count(int(lengths[int(match["shard"])])) if len(lengths) == int(match["shards"]) else None
    except (ValueError, LookupError, TypeError, OverflowError):
        return None  # an info of another form is no reason to refuse the data


TFDS = Source(
    help="a folder of TFDS's TFRecords, such as imagenet2012/5.1.0 (extra tfrecord)",
    files="TFDS shards (NAME-SPLIT.tfrecord-00000-of-00001)",
    owns=lambda name: _match(name) is not None,
    plan=_plan,
    read=_read,
    marks=(".tfrecord",),
    package=PACKAGE,
    is_labeled=_is_labeled,
    split_help="train, test, ...",
)
