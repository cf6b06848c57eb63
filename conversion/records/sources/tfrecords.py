"""TFRecord files of img2dataset and of TFDS, read by TensorFlow (extra `tfrecord`)."""

import contextlib
import importlib
import importlib.util
import os
import re
import sys
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from clipa_eqx.data.records import ExtraValue
from clipa_eqx.errors import DataError
from conversion.records.files import Found, Place, find_files, is_pattern, staged, unreadable
from conversion.records.rows import BAD_ROW, TRUNCATED, Columns, IngestOptions, Lost, Part, Plan, Row
from conversion.records.sources.columns import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    KEY_COLUMNS,
    as_captions,
    as_extra,
    as_label,
    check_kept,
    choose_column,
    from_json,
)
from conversion.records.sources.plans import (
    Damaged,
    as_count,
    beside,
    digest_of,
    first_rows,
    ignored_files,
    img2dataset_count,
    parts_of,
    with_columns,
)

_TFDS_NAME = re.compile(r"^(?P<data>.+)-(?P<split>[^-.]+)\.tfrecord-(?P<shard>\d+)-of-(?P<shards>\d+)$")
_TFDS_NOTES = ("dataset_info.json", "features.json", "metadata.json")
_NAME = re.compile(r"\.tfrecords?(\.gz)?(-\d+-of-\d+)?(\.gz)?$")

Features = Mapping[str, list[object]]


def plan_img2dataset(place: Place, *, options: IngestOptions) -> Plan:
    """One part per TFRecord file; gzip is recognized when a file is read.

    Raises:
        DataError: there is none, TensorFlow is not installed, or the first examples lack a column.
    """
    found = find_files(place)
    chosen = [file for file in found if _NAME.search(file.name)]
    plan = parts_of(place, found, chosen, kind="img2dataset", what="TFRecord files")
    _check_tensorflow()
    return with_columns(plan, _choose(place, plan.parts, options, label=(), key=KEY_COLUMNS))


def plan_tfds(place: Place, *, options: IngestOptions) -> Plan:
    """One part per shard of a split; class names from `label.labels.txt` where it is present.

    Raises:
        DataError: no TFDS shards, several data sets, several splits and none chosen, a shard is missing, class names
            that are not UTF-8, TensorFlow is not installed, or the first examples lack a column.
    """
    found = find_files(place)
    shards = {file: match for file in found if (match := _TFDS_NAME.match(file.name.rpartition("/")[2]))}
    sets = sorted({f"{file.name[: -len(match[0])]}{match['data']}" for file, match in shards.items()})
    if len(sets) > 1:
        raise DataError(f"{place.url} holds several data sets, give the folder of one: {', '.join(sets[:5])}")
    splits = sorted({match["split"] for match in shards.values()})
    if options.split is not None and shards and options.split not in splits:
        raise DataError(f"{place.url} has no split {options.split!r}; it has: {', '.join(splits)}")
    if options.split is None and len(splits) > 1:
        raise DataError(f"{place.url} holds several splits, choose one with --split: {', '.join(splits)}")
    chosen = {file: match for file, match in shards.items() if match["split"] == (options.split or splits[0])}
    plan = parts_of(place, found, list(chosen), kind="tfds", what="TFDS shards (NAME-SPLIT.tfrecord-00000-of-00001)")
    _check_complete(place, chosen)
    _check_tensorflow()
    label = options.label_column or "label"
    names = next((file for file in found if file.name.rpartition("/")[2] == f"{label}.labels.txt"), None)
    about = [file for file in found if file.name.endswith((*_TFDS_NOTES, ".labels.txt"))]
    counts = beside(place, found, list(chosen), lambda _: "dataset_info.json")
    is_labeled = options.label_column is not None or options.caption_column is None
    columns = _choose(
        place,
        plan.parts,
        options,
        label=("label",) if is_labeled else (),
        key=("file_name", *KEY_COLUMNS) if is_labeled else KEY_COLUMNS,
    )
    plan = Plan(
        parts=plan.parts,
        class_names=None if names is None else _class_names(place, names.path),
        info={"split": options.split or splits[0], **ignored_files(set(found) - shards.keys() - set(about))},
        digest=digest_of({file.path: file for file in (*about, *counts)}.values()),
    )
    return with_columns(plan, columns)


def read_img2dataset(place: Place, part: Part, *, options: IngestOptions) -> Iterator[Row | Lost]:
    """The examples of a file in order; one lost row stands for what follows behind damage (see `read_webdataset`).

    Raises:
        DataError: the file cannot be opened.
    """
    yield from _read(place, part, options=options, expected=img2dataset_count(place, part))


def read_tfds(place: Place, part: Part, *, options: IngestOptions) -> Iterator[Row | Lost]:
    """As `read_img2dataset`; the label is `label`, the key `file_name` (else `id`, else split, shard and row)."""
    yield from _read(place, part, options=options, expected=_tfds_count(place, part))


def _choose(
    place: Place, parts: Sequence[Part], options: IngestOptions, *, label: tuple[str, ...], key: tuple[str, ...]
) -> Columns:
    def read(part: Part) -> Iterator[Features]:
        return (features for features in _examples(place, part.path) if not isinstance(features, str))

    names = dict.fromkeys(name for features in first_rows(parts, read) for name in sorted(features))
    if not names:
        return Columns()
    where = f"the first examples of {place.url}"
    check_kept(names, options=options, where=where)
    needed = options.label_column is None and not label
    return Columns(
        image=choose_column(options.image_column, names, IMAGE_COLUMNS, what="image", where=where, needed=True),
        caption=choose_column(
            options.caption_column, names, CAPTION_COLUMNS, what="caption", where=where, needed=needed
        ),
        label=choose_column(options.label_column, names, label, what="label", where=where),
        key=choose_column(options.key_column, names, key, what="key", where=where),
    )


def _read(place: Place, part: Part, *, options: IngestOptions, expected: int | None) -> Iterator[Row | Lost]:
    read, damage = 0, None
    try:
        for features in _examples(place, part.path):
            place_key = f"{part.source}/{read:08d}"
            read += 1
            if isinstance(features, str):
                yield Lost(reason=BAD_ROW, key=place_key, detail=features)
            else:
                yield _row(features, part.columns, place_key=place_key, options=options)
    except Damaged as error:
        damage = str(error)
    if damage is not None or (expected is not None and expected > read):
        yield Lost(
            reason=TRUNCATED,
            key=part.source,
            detail=damage or f"{read} records where its data set counts {expected}",
            count=1 if expected is None else max(expected - read, 1),
            rest_unknown=expected is None,
        )


def _examples(place: Place, path: str) -> Iterator[Features | str]:
    """The features of each example, or what is wrong with it.

    Raises:
        Damaged: what follows cannot be read.
    """
    tf = _tensorflow()
    with staged(place.fs, path) as copy:
        raw = tf.data.TFRecordDataset(copy, compression_type="GZIP" if _is_gzip(copy) else "", buffer_size=2**22)
        items: Iterator[bytes] = raw.as_numpy_iterator()
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except tf.errors.DataLossError as error:
                raise Damaged(str(error).partition(" [Op:")[0].partition("}} ")[2] or str(error)) from error
            yield _features(tf, item)


def _row(features: Features, columns: Columns, *, place_key: str, options: IngestOptions) -> Row:
    key, image = _one(features, columns.key), _one(features, columns.image)
    extra: dict[str, ExtraValue] = {name: as_extra(_one(features, name)) for name in options.keep if name in features}
    return Row(
        key=place_key if key is None or key == b"" else key if isinstance(key, bytes) else str(key),
        image=image if isinstance(image, bytes) else None,
        captions=as_captions(features.get(columns.caption or "", ())),
        label=as_label(_one(features, columns.label)),
        extra=extra,
    )


def _features(tf: Any, item: bytes) -> Features | str:
    try:
        example: Any = tf.train.Example.FromString(item)
    except Exception as error:  # protobuf's DecodeError has moved between its versions
        return f"not a tf.Example: {error}"
    return {name: _values(feature) for name, feature in example.features.feature.items()}


def _values(feature: Any) -> list[object]:
    kind = feature.WhichOneof("kind")
    return [] if kind is None else list(getattr(feature, kind).value)


def _one(features: Features, name: str | None) -> object:
    values = features.get(name) if name is not None else None
    return values[0] if values else None


def _is_gzip(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(4096)
    if head[:2] != b"\x1f\x8b":
        return False
    try:  # the length of a first record may look like gzip's mark, but not also like its stream
        zlib.decompressobj(31).decompress(head)
    except zlib.error:
        return False
    return True


def _check_complete(place: Place, shards: Mapping[Found, re.Match[str]]) -> None:
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


def _tfds_count(place: Place, part: Part) -> int | None:
    folder, _, base = part.path.rpartition("/")
    match = _TFDS_NAME.match(base)
    path = f"{folder}/dataset_info.json"
    if match is None or not place.fs.exists(path):
        return None
    try:
        content: Any = from_json(place.fs.cat_file(path))
        (split,) = (split for split in content["splits"] if split["name"] == match["split"])
        lengths = split["shardLengths"]
        return as_count(int(lengths[int(match["shard"])])) if len(lengths) == int(match["shards"]) else None
    except (ValueError, LookupError, TypeError, OverflowError):
        return None  # an info of another form is no reason to refuse the data


def _class_names(place: Place, path: str) -> tuple[str, ...]:
    try:
        return tuple(place.fs.cat_file(path).decode().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error


def _tensorflow() -> Any:
    """The package, with its accelerators switched off."""
    _check_tensorflow()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    with _silent_stderr():
        tf: Any = importlib.import_module("tensorflow")
        tf.config.set_visible_devices([], "GPU")
    return tf


@contextlib.contextmanager
def _silent_stderr() -> Generator[None]:
    """TensorFlow's libraries write about missing accelerators before any setting of theirs is read."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _check_tensorflow() -> None:
    # Without importing it: that takes seconds, and only the processes that read need it.
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError("TFRecords are read by TensorFlow, which is not installed: pip install 'clipa_eqx[tfrecord]'")
