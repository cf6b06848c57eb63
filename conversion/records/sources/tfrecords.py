"""TFRecord files, read by TensorFlow (extra ``tfrecord``), which checks their checksums."""

import contextlib
import importlib
import os
import sys
import zlib
from collections.abc import Generator, Iterator
from typing import Any

from conversion.records.places import Place
from conversion.records.reading import local_copy
from conversion.records.sources.damage import Damaged

PACKAGE = "tensorflow"


def read_tfrecords(place: Place, path: str) -> Iterator[bytes]:
    """The records of a file in order; gzip too.

    Raises:
        Damaged: the rest cannot be read.
        DataError: the file cannot be opened.
    """
    tf = _tensorflow()
    with local_copy(place.fs, path) as copy:
        raw = tf.data.TFRecordDataset(copy, compression_type="GZIP" if _is_gzip(copy) else "", buffer_size=2**22)
        records: Iterator[bytes] = raw.as_numpy_iterator()
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except tf.errors.DataLossError as error:
                raise Damaged(str(error).partition(" [Op:")[0].partition("}} ")[2] or str(error)) from error
            yield record


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
