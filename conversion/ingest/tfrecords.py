"""TFRecord files of img2dataset and of TFDS, read by TensorFlow (extra `tfrecord`)."""

import contextlib
import importlib
import importlib.util
import json
import os
import re
import sys
import zlib
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple

from clipa_eqx.data.records import ExtraValue
from clipa_eqx.errors import DataError
from conversion.ingest.columns import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    KEY_COLUMNS,
    as_captions,
    as_extra,
    as_label,
    choose_column,
    no_column,
)
from conversion.ingest.files import Found, Place, find_files, staged
from conversion.ingest.plans import img2dataset_count, parts_of
from conversion.ingest.rows import BAD_ROW, TRUNCATED, IngestOptions, Lost, Part, Plan, Row

_TFDS_NAME = re.compile(r"^(?P<data>.+)-(?P<split>[^-.]+)\.tfrecord-(?P<shard>\d+)-of-(?P<shards>\d+)$")
_NAME = re.compile(r"\.tfrecords?(\.gz)?(-\d+-of-\d+)?(\.gz)?$")

Features = Mapping[str, list[object]]


class _Columns(NamedTuple):
    image: str
    caption: str | None
    label: str | None
    key: str | None


def plan_img2dataset(place: Place) -> Plan:
    """One part per TFRecord file; gzip is recognised when a file is read.

    Raises:
        DataError: there is none, or TensorFlow is not installed.
    """
    found = find_files(place)
    chosen = [file for file in found if _NAME.search(file.name)]
    plan = parts_of(place, found, chosen, kind="img2dataset", what="TFRecord files")
    _check_tensorflow()
    return plan


def plan_tfds(place: Place, *, options: IngestOptions) -> Plan:
    """One part per shard of a split; class names from `label.labels.txt` where it is present.

    Raises:
        DataError: no TFDS shards, several splits and none chosen, a shard is missing, or TensorFlow is not installed.
    """
    found = find_files(place)
    shards = {file: match for file in found if (match := _TFDS_NAME.match(file.name.rpartition("/")[2]))}
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
    classes = None if names is None else tuple(place.fs.cat_file(names.path).decode().splitlines())
    return Plan(parts=plan.parts, class_names=classes, info={"split": options.split or splits[0]})


def read_img2dataset(place: Place, part: Part, *, options: IngestOptions) -> Iterator[Row | Lost]:
    """The examples of a file in order; one lost row stands for what follows behind damage (see `read_webdataset`).

    Raises:
        DataError: the file cannot be opened, or a column asked for is not there.
    """
    yield from _read(place, part, options=options, expected=img2dataset_count(place, part), labelled=False)


def read_tfds(place: Place, part: Part, *, options: IngestOptions) -> Iterator[Row | Lost]:
    """As `read_img2dataset`; the label is `label`, the key `file_name` (else `id`, else split, shard and row)."""
    labelled = options.label_column is not None or options.caption_column is None
    expected = _tfds_count(place, part)
    yield from _read(place, part, options=options, expected=expected, labelled=labelled)


def _read(
    place: Place, part: Part, *, options: IngestOptions, expected: int | None, labelled: bool
) -> Iterator[Row | Lost]:
    tf = _tensorflow()
    read, damage, columns = 0, None, None
    with staged(place.fs, part.path) as path:
        raw = tf.data.TFRecordDataset(path, compression_type="GZIP" if _is_gzip(path) else "", buffer_size=2**22)
        items: Iterator[bytes] = raw.as_numpy_iterator()
        while True:
            try:
                item = next(items)
            except StopIteration:
                break
            except tf.errors.DataLossError as error:
                damage = str(error).partition(" [Op:")[0].partition("}} ")[2] or str(error)
                break
            features, place_key = _features(tf, item), f"{part.source}/{read:08d}"
            read += 1
            if isinstance(features, str):
                yield Lost(reason=BAD_ROW, key=place_key, detail=features)
                continue
            if columns is None:
                columns = _choose(features, part, options=options, labelled=labelled)
            yield _row(features, columns, place_key=place_key, options=options)
    if damage is not None or (expected is not None and expected > read):
        yield Lost(
            reason=TRUNCATED,
            key=part.source,
            detail=damage or f"{read} records where its data set counts {expected}",
            count=1 if expected is None else max(expected - read, 1),
            rest_unknown=expected is None,
        )


def _choose(features: Features, part: Part, *, options: IngestOptions, labelled: bool) -> _Columns:
    def choose(asked: str | None, candidates: tuple[str, ...], what: str) -> str | None:
        return choose_column(
            asked, features, candidates, what=what, flag=f"--{what}-column", where=f"the first record of {part.source}"
        )

    image = choose(options.image_column, IMAGE_COLUMNS, "image")
    if image is None:
        raise no_column(what="image", flag="--image-column", where=part.source, names=features)
    return _Columns(
        image,
        choose(options.caption_column, CAPTION_COLUMNS, "caption"),
        choose(options.label_column, ("label",) if labelled else (), "label"),
        choose(options.key_column, ("file_name", *KEY_COLUMNS) if labelled else KEY_COLUMNS, "key"),
    )


def _row(features: Features, columns: _Columns, *, place_key: str, options: IngestOptions) -> Row:
    key, image = _one(features, columns.key), _one(features, columns.image)
    extra: dict[str, ExtraValue] = {name: as_extra(_one(features, name)) for name in options.keep if name in features}
    return Row(
        key=place_key if key is None or key == b"" else key if isinstance(key, bytes) else str(key),
        image=image if isinstance(image, bytes) else None,
        captions=as_captions(features.get(columns.caption)) if columns.caption is not None else (),
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
    if missing and re.search(r"[*?\[]", place.path) is None and not place.fs.isfile(place.path):
        shown = ", ".join(missing[:3])
        raise DataError(f"{place.url} lacks {len(missing)} of its shards: {shown}{', ...' if len(missing) > 3 else ''}")


def _tfds_count(place: Place, part: Part) -> int | None:
    folder, _, base = part.path.rpartition("/")
    match = _TFDS_NAME.match(base)
    path = f"{folder}/dataset_info.json"
    if match is None or not place.fs.exists(path):
        return None
    try:
        content: Any = json.loads(place.fs.cat_file(path))
        (split,) = (split for split in content["splits"] if split["name"] == match["split"])
        lengths = split["shardLengths"]
        return int(lengths[int(match["shard"])]) if len(lengths) == int(match["shards"]) else None
    except (ValueError, KeyError, TypeError, IndexError):
        return None  # an info of another form is no reason to refuse the data


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
