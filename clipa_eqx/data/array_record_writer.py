"""Writer of record folders: ArrayRecord shards and a manifest, which appear together when they are complete."""

import contextlib
import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path

from clipa_eqx.data.array_record_files import open_writer
from clipa_eqx.data.manifest import MANIFEST_NAME, Manifest, write_manifest
from clipa_eqx.data.records import Record, encode_record
from clipa_eqx.data.shards import ShardInfo
from clipa_eqx.data.verification import hash_file
from clipa_eqx.errors import CheckpointError, DataError
from clipa_eqx.replacing import real_path, remove_leftovers, replacing_folder


def write_records(
    records: Iterable[Record],
    folder: str | Path,
    *,
    records_per_shard: int = 10_000,
    dropped: Mapping[str, int] | None = None,
    rows_read: int | None = None,
    class_names: Iterable[str] | None = None,
    info: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write ``records`` in order into shards of ``records_per_shard``, and the manifest next to them.

    The folder appears under its name only when it is complete. Until then everything is in ``.<folder>.new-<pid>``,
    which is removed on failure and, after a kill, by the next call. Equal records give equal bytes.

    Args:
        records: the records in their order.
        folder: the folder to write.
        records_per_shard: records of each shard except the last one.
        dropped: number of dropped rows by reason. It is read after the last record, so that a generator can count into
            it while it runs.
        rows_read: rows of the source, if known; must equal rows written + rows dropped.
        class_names: names of the classes by label.
        info: any JSON, such as source, command and settings.
        overwrite: replace a folder if it is empty or a record folder.

    Raises:
        DataError: the folder exists and must not be replaced, the account does not close, a record cannot be encoded,
            or a label has no class name.
    """
    if records_per_shard < 1:
        raise DataError(f"records_per_shard must be at least 1, got {records_per_shard}")
    target = _check_target(Path(folder), overwrite=overwrite)
    names = None if class_names is None else tuple(class_names)
    with replacing_folder(target, check=lambda: _check_target(Path(folder), overwrite=overwrite)) as unfinished:
        rest = _checked_labels(records, names)
        shards: list[ShardInfo] = []
        for first in rest:
            chunk = itertools.chain([first], itertools.islice(rest, records_per_shard - 1))
            shards.append(write_shard(unfinished / f"shard-{len(shards):05d}.array_record", chunk))
        written = sum(shard.count for shard in shards)
        reasons = dict(dropped or {})
        manifest = Manifest(
            shards=tuple(shards),
            rows_read=written + sum(reasons.values()) if rows_read is None else rows_read,
            rows_written=written,
            rows_dropped=reasons,
            class_names=names,
            info=dict(info or {}),
        )
        write_manifest(unfinished, manifest)
    return manifest


def write_shard(path: str | Path, records: Iterable[Record]) -> ShardInfo:
    """Write one ArrayRecord file and describe it; its bytes depend on the records only.

    Raises:
        DataError: a record cannot be encoded, or the file cannot be written.
    """
    return write_encoded_shard(path, map(encode_record, records))


def write_encoded_shard(path: str | Path, blobs: Iterable[bytes]) -> ShardInfo:
    """Write encoded records like ``write_shard``.

    Raises:
        DataError: the file cannot be written.
    """
    path = Path(path)
    with _errors_of(path):
        writer = open_writer(str(path))
    count = 0
    try:
        for blob in blobs:
            with _errors_of(path):
                writer.write(blob)
            count += 1
    finally:
        with _errors_of(path):
            writer.close()
    return ShardInfo(name=path.name, count=count, bytes=path.stat().st_size, sha256=hash_file(path))


@contextlib.contextmanager
def _errors_of(path: Path) -> Generator[None]:
    """Raise the writer's errors as DataError. It has one class for all causes, and reports most of them on closing."""
    try:
        yield
    except RuntimeError as error:
        raise DataError(f"{path} cannot be written: {error}; is the disk full?") from error


def _checked_labels(records: Iterable[Record], names: tuple[str, ...] | None) -> Iterator[Record]:
    for record in records:
        if names is not None and record.label is not None and record.label >= len(names):
            raise DataError(f"record {record.key!r} has label {record.label} but there are {len(names)} class names")
        yield record


def _check_target(folder: Path, *, overwrite: bool) -> Path:
    """Return the real path of the folder to write. Raise DataError if it must not be replaced."""
    try:
        real = real_path(folder)
    except CheckpointError as error:
        raise DataError(str(error)) from error
    remove_leftovers(real)
    if not real.exists():
        return real
    if not overwrite:
        raise DataError(f"{folder} exists already; choose another folder or ask to overwrite it")
    # Replacing deletes the old content, so replace only record folders and empty folders.
    if not real.is_dir() or (any(real.iterdir()) and not (real / MANIFEST_NAME).is_file()):
        raise DataError(f"{folder} exists and is not a record folder; it will not be overwritten, choose another name")
    return real
