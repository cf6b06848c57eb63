"""A local copy of the small files of a folder in a bucket, which the code for local folders works on."""

import atexit
import functools
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from clipa_eqx.buckets.bucket import Bucket, bucket_at
from clipa_eqx.errors import CheckpointError, ClipaError

SOURCE_FILE = ".bucket.json"
"""File in a copy that names the bucket. Nothing uploads it."""

LOCK_FOLDER = "run.lock"
"""Folder of the lock's objects."""

# Folders of a run that are not copied: large, or of no use on another machine. Their names are kept.
_OF_RECORDS = ("checkpoints", "frozen_leaves")
_NOT_COPIED = frozenset({*_OF_RECORDS, "damaged_checkpoints", "profile", "wandb", LOCK_FOLDER})
_RECORD = re.compile(r"\w+/(\d+)/record/metadata")
_OTHER_CHECKPOINT = re.compile(r"\w+/(\d+)/_CHECKPOINT_METADATA")
_WEIGHTS = frozenset({".safetensors", ".msgpack"})

_log = logging.getLogger(__name__)


def bucket_of(folder: Path) -> Bucket | None:
    """The bucket folder that a local folder is a copy of; None for other folders."""
    path = folder / SOURCE_FILE
    if not path.is_file():
        return None
    return bucket_at(json.loads(path.read_text(encoding="utf-8"))["url"])


def shown(folder: Path) -> str:
    """A folder as messages name it: the address of the bucket folder that it is a copy of, or its path."""
    bucket = bucket_of(folder)
    return str(folder) if bucket is None else bucket.url


@contextmanager
def local_run(path: Path | str) -> Generator[Path]:
    """Yield a run folder to work in: ``path``, or a copy of the folder in a bucket, whose name errors and logs have.

    Raises:
        ConfigError: an address of another kind than ``gs://`` and ``s3://``, or a missing package.
        BucketError: the bucket cannot be read.
    """
    bucket = bucket_at(path)
    if bucket is None:
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="clipa_eqx_run_") as scratch:
        folder = _new_copy(bucket, Path(scratch))
        with _named_as(folder, bucket):
            refresh(folder, with_weights=False)
            yield folder


def local_copy(path: Path | str, *, with_weights: bool = True) -> Path:
    """A folder to read from: ``path``, or a copy of the folder in a bucket, which is kept until the process ends.

    Args:
        with_weights: also copy files of weights.

    Raises:
        ConfigError, BucketError: as ``local_run``.
    """
    bucket = bucket_at(path)
    if bucket is None:
        return Path(path)
    folder = _kept_copy(bucket)
    with _named_as(folder, bucket):
        refresh(folder, with_weights=with_weights)
    return folder


@contextmanager
def named(path: Path | str) -> Generator[None]:
    """Name a bucket folder in errors and logs of the block by its address, instead of its copy."""
    bucket = bucket_at(path)
    if bucket is None:
        yield
        return
    with _named_as(_kept_copy(bucket), bucket):
        yield


def refresh(folder: Path, *, with_weights: bool = False) -> None:
    """Bring a copy up to date; a folder that is no copy is left unchanged.

    Raises:
        BucketError: the bucket cannot be read.
        CheckpointError: its checkpoints were copied from a local run.
    """
    bucket = bucket_of(folder)
    if bucket is None:
        return
    entries = bucket.entries()
    for old in folder.iterdir():
        if old.name != SOURCE_FILE and old.name not in entries:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    sizes: dict[str, int] = {}
    for name, size in entries.items():
        if name in _OF_RECORDS and size is None:
            _copy_records(bucket, folder, name)
        elif name in _NOT_COPIED:
            continue
        elif size is None:
            sizes |= bucket.names(name)
        else:
            sizes[name] = size
    is_ours = any(name in entries for name in ("config.json", "metrics.jsonl", "checkpoints", "manifest.json"))
    for name, size in sizes.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        is_weights = PurePosixPath(name).suffix in _WEIGHTS
        if name.startswith("tensorboard/") or not is_ours or (is_weights and not with_weights):
            # The name is enough: the file is replaced or not read, or it shows that the folder has another use.
            if not file.exists():
                file.touch()
        elif not (is_weights and "/" in name and file.is_file() and file.stat().st_size == size):
            bucket.download(name, file, size)


def _copy_records(bucket: Bucket, folder: Path, folder_name: str) -> None:
    """Copy the records of committed checkpoints, and delete those of checkpoints that are gone."""
    names = bucket.names(folder_name)
    others = {found[1] for name in names if (found := _OTHER_CHECKPOINT.fullmatch(name))}
    if others:
        raise CheckpointError(
            f"{bucket.url} has checkpoints that a run in a local folder wrote ({', '.join(sorted(others))}); copy the "
            "run back to a local folder to use it, or start a new run in the bucket with --init-from that folder"
        )
    committed = {found[1]: name for name in names if (found := _RECORD.fullmatch(name))}
    here = folder / folder_name
    here.mkdir(exist_ok=True)
    for old in here.iterdir():
        if old.name not in committed:
            shutil.rmtree(old)
    for step, name in committed.items():
        content = bucket.read(name)
        if content is not None:
            file = here / step / "record" / "metadata"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


@functools.cache
def _kept_copy(bucket: Bucket) -> Path:
    scratch = Path(tempfile.mkdtemp(prefix="clipa_eqx_copy_"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return _new_copy(bucket, scratch)


def _new_copy(bucket: Bucket, scratch: Path) -> Path:
    folder = scratch / (PurePosixPath(bucket.folder).name or bucket.name)
    folder.mkdir()
    (folder / SOURCE_FILE).write_text(json.dumps({"url": bucket.url}), encoding="utf-8")
    return folder


@contextmanager
def _named_as(folder: Path, bucket: Bucket) -> Generator[None]:
    before = logging.getLogRecordFactory()

    def with_address(*values: Any, **others: Any) -> logging.LogRecord:
        record = before(*values, **others)
        text = record.getMessage()
        if str(folder) in text:
            record.msg, record.args = text.replace(str(folder), bucket.url), ()
        return record

    logging.setLogRecordFactory(with_address)
    try:
        yield
    except ClipaError as error:
        error.args = tuple(str(one).replace(str(folder), bucket.url) for one in error.args)
        raise
    finally:
        logging.setLogRecordFactory(before)
