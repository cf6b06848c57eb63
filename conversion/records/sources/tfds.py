"""Source ``tfds``: one data set of TensorFlow Datasets, a folder of shards named by split, form and number."""

import logging
from collections.abc import Iterator, Mapping, Sequence

from clipa_eqx.errors import DataError, counted
from clipa_eqx.evals.prompts import parse_class_names
from conversion.records.listing import FoundFile
from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.reading import unreadable
from conversion.records.rows import Columns, Lost, Part, Plan, Row, Tally
from conversion.records.sources.array_records import read_array_records
from conversion.records.sources.columns import KEY_COLUMNS, first_of
from conversion.records.sources.damage import with_lost_rest
from conversion.records.sources.example_proto import Features
from conversion.records.sources.example_tables import read_example_table
from conversion.records.sources.examples import ReadFile, choose_features, names_of, read_examples, read_features
from conversion.records.sources.planning import Choice, files_next_to, plan_files
from conversion.records.sources.source import Source, SourceFiles, check_package
from conversion.records.sources.tfds_features import DeclaredFeatures, declared_features, labels_files
from conversion.records.sources.tfds_shards import INFO, choose_shards, counted_rows, match_shard, read_next_to
from conversion.records.sources.tfrecords import PACKAGE, read_tfrecords

_log = logging.getLogger(__name__)
_FEATURES = "features.json"
_NOTES = (INFO, _FEATURES, "metadata.json", ".labels.txt")
_PACKAGES = {"tfrecord": PACKAGE, "parquet": "pyarrow"}
_READERS: Mapping[str, ReadFile] = {
    "tfrecord": read_tfrecords,
    "array_record": read_array_records,
    "parquet": read_example_table,
}


def notes_of_tfds(found: Sequence[FoundFile]) -> set[str]:
    """Paths of the files that TFDS writes next to shards; empty without shards."""
    if not any(match_shard(file.name) for file in found):
        return set()
    return {file.path for file in found if file.name.rpartition("/")[2].endswith(_NOTES)}


def _plan(files: SourceFiles, options: IngestOptions) -> Plan:
    """Plan one part per shard of the chosen splits; captions, labels and class names are those of declared features.

    Raises:
        DataError: several data sets, several splits and none chosen, no such split, a shard is missing, the form is
            riegeli, its package is not installed, class names are not UTF-8 or not as many as classes, or the first
            examples lack a column.
    """
    files, splits, form = choose_shards(files, options)
    check_package("tfds", _PACKAGES.get(form))
    place = files.place
    declared = declared_features(read_next_to(files, _FEATURES), read_next_to(files, INFO))

    def choose(examples: Iterator[Features]) -> Choice:
        first = list(examples)
        columns = _choose_columns(first, declared, options, where=f"the first examples of {place.url}")
        label = columns.label or options.label_column or next(iter(declared.label_names(has_captions=False)))
        return Choice(columns, _class_names(files, label, declared, options, first))

    notes = [file for file in files.found if file.name.endswith(_NOTES)]
    names = (INFO, _FEATURES, *(name for label in (*declared.classes, "label") for name in labels_files(label)))
    notes += [file for name in names for file in files_next_to(files, lambda _, name=name: name)]
    return plan_files(
        files,
        first=lambda part: read_features(_READERS[form](place, part.path)),
        choose=choose,
        about=list({file.path: file for file in notes}.values()),
        info={"split": ",".join(splits), "form": form},
    )


def _choose_columns(
    first: list[Features], declared: DeclaredFeatures, options: IngestOptions, *, where: str
) -> Columns:
    captions = declared.caption_names()
    has_captions = options.caption_column is not None or first_of(names_of(first), captions) is not None
    return choose_features(
        first,
        options=options,
        where=where,
        image=declared.image_names(),
        caption=captions,
        label=declared.label_names(has_captions=has_captions),
        key=("file_name", *KEY_COLUMNS),
    )


def _class_names(
    files: SourceFiles, label: str, declared: DeclaredFeatures, options: IngestOptions, first: list[Features]
) -> tuple[str, ...] | None:
    """The names in the file next to the shards; None without one."""
    count = declared.classes.get(label) or None
    file = next(
        (file for name in labels_files(label) for file in files_next_to(files, lambda _, name=name: name)), None
    )
    if file is not None:
        names = _read_names(files.place, file)
        if count is not None and len(names) != count:
            raise DataError(
                f"{file.path} has {counted(len(names), 'name')}, but {_FEATURES} gives {label!r} {count:,} classes; "
                "restore both files from the data set"
            )
        return names
    if options.class_names is not None:
        if count is not None and len(options.class_names) != count:
            raise DataError(
                f"{files.place.url}: {label!r} has {count:,} classes, but --class-names has "
                f"{counted(len(options.class_names), 'name')}; give one name for each class"
            )
    elif any(isinstance(value, int) for features in first for value in features.get(label, ())):
        _log.warning(
            "no class names: there is no %s next to the shards; copy it, features.json and dataset_info.json from the "
            "folder that TFDS prepared (`tfds convert_format --out_dir` leaves them out), or give --class-names",
            labels_files(label)[0],
        )
    return None


def _read_names(place: Place, file: FoundFile) -> tuple[str, ...]:
    try:
        content: bytes = place.fs.cat_file(file.path)
    except OSError as error:
        raise unreadable(file.path, error) from error
    return parse_class_names(content, where=file.path)


def _read(place: Place, part: Part, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    """The examples of a shard in order, with one lost row for the rest of a shard that is cut or damaged.

    The key is ``file_name``, else ``id`` or ``image/filename``, else split, shard and row.
    """
    match = match_shard(part.path)
    read = read_tfrecords if match is None else _READERS[match["form"]]
    rows = read_examples(read(place, part.path), part)
    return with_lost_rest(rows, part, expected=counted_rows(place, part))


def _is_labeled(options: IngestOptions, columns: Columns) -> bool:
    """Check whether rows need a label: they do if there is one, unless captions are asked for."""
    if options.label_column is not None:
        return True
    return columns.label is not None and options.caption_column is None


TFDS = Source(
    help="a folder of TFDS, such as imagenet2012/5.1.0: TFRecord (extra tfrecord), ArrayRecord or Parquet",
    files="TFDS shards (NAME-SPLIT.tfrecord-00000-of-00001, also array_record and parquet)",
    owns=lambda name: match_shard(name) is not None,
    plan=_plan,
    read=_read,
    marks=(".tfrecord",),
    is_labeled=_is_labeled,
    split_help="train, test, ... or several: train,restval",
)
