"""TFRecord files of ``tf.Example``s, read by TensorFlow (extra ``tfrecord``)."""

import contextlib
import importlib
import os
import sys
import zlib
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.reading import local_copy
from conversion.records.rows import BAD_ROW, Columns, Lost, Part, Row
from conversion.records.sources.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, check_kept, choose_column
from conversion.records.sources.damage import Damaged
from conversion.records.sources.values import as_captions, as_label, kept_values

PACKAGE = "tensorflow"

Features = Mapping[str, list[object]]


def read_features(place: Place, part: Part) -> Iterator[Features]:
    """The features of each valid example of a file.

    Raises:
        Damaged: the rest cannot be read.
        DataError: the file cannot be opened.
    """
    return (features for features in _examples(place, part.path) if not isinstance(features, str))


def choose_features(
    examples: Iterator[Features],
    *,
    options: IngestOptions,
    label: tuple[str, ...],
    key: tuple[str, ...],
    where: str,
) -> Columns:
    """Choose the features that rows are made of.

    Args:
        label: usual names of the label; if there are any, captions are optional.
        key: usual names of the key.

    Raises:
        DataError: a feature is missing.
    """
    names = dict.fromkeys(name for features in examples for name in sorted(features))
    if not names:
        return Columns()
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


def read_examples(place: Place, part: Part, options: IngestOptions) -> Iterator[Row | Lost]:
    """The examples of a file in order. An example without a key is named by its place.

    Raises:
        Damaged: the rest cannot be read.
        DataError: the file cannot be opened.
    """
    for i, features in enumerate(_examples(place, part.path)):
        place_key = f"{part.source}/{i:08d}"
        if isinstance(features, str):
            yield Lost(reason=BAD_ROW, key=place_key, detail=features)
        else:
            yield _row(features, part.columns, place_key=place_key, options=options)


def _row(features: Features, columns: Columns, *, place_key: str, options: IngestOptions) -> Row:
    key, image = _one(features, columns.key), _one(features, columns.image)
    firsts = {name: _one(features, name) for name in options.keep if name in features}
    return Row(
        key=place_key if key is None or key == b"" else key if isinstance(key, bytes) else str(key),
        image=image if isinstance(image, bytes) else None,
        captions=as_captions(features.get(columns.caption or "", ())),
        label=as_label(_one(features, columns.label)),
        extra=kept_values(firsts, options.keep),
    )


def _one(features: Features, name: str | None) -> object:
    values = features.get(name) if name is not None else None
    return values[0] if values else None


def _examples(place: Place, path: str) -> Iterator[Features | str]:
    """The features of each example, or a text that says what is wrong with it."""
    tf = _tensorflow()
    with local_copy(place.fs, path) as copy:
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


def _features(tf: Any, item: bytes) -> Features | str:
    try:
        example: Any = tf.train.Example.FromString(item)
    except Exception as error:  # protobuf's DecodeError has moved between its versions
        return f"not a tf.Example: {error}"
    return {name: _values(feature) for name, feature in example.features.feature.items()}


def _values(feature: Any) -> list[object]:
    kind = feature.WhichOneof("kind")
    return [] if kind is None else list(getattr(feature, kind).value)


def _is_gzip(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(4096)
    if head[:2] != b"\x1f\x8b":
        return False
    try:  # the length of a first record may look like gzip's mark, but what follows not like its stream
        zlib.decompressobj(31).decompress(head)
    except zlib.error:
        return False
    return True


def _tensorflow() -> Any:
    """The package, with its accelerators switched off."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    with _silent_stderr():
        tf: Any = importlib.import_module("tensorflow")
        tf.config.set_visible_devices([], "GPU")
    return tf


@contextlib.contextmanager
def _silent_stderr() -> Generator[None]:
    """Silence TensorFlow's libraries, which report missing accelerators before they read any setting."""
    sys.stderr.flush()
    before, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nothing)
