"""Work over all shards of a finished record folder, in processes and with progress."""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple, TypeVar

from clipa_eqx.data.addresses import resolve
from clipa_eqx.data.array_record_files import open_reader
from clipa_eqx.data.manifest import Manifest
from clipa_eqx.data.shards import ShardInfo
from clipa_eqx.errors import DataError
from conversion.records.places import Place, open_place
from conversion.records.reading import local_copy
from conversion.records.workers import Progress, run_jobs

Result = TypeVar("Result")


class Shard(NamedTuple):
    """A shard of a record folder.

    Attributes:
        url: the folder of the file.
        file: its name there.
        number: position of the shard in the manifest.
        info: entry of the shard in the manifest.
    """

    url: str
    file: str
    number: int
    info: ShardInfo


def shard_of(place: Place, manifest: Manifest, number: int) -> Shard:
    """A shard of the record folder ``place`` by its position in the manifest."""
    folder, file = manifest.table.file(number)
    address = manifest.table.folders[folder]
    return Shard(resolve(place.url, address) if address else place.url, file, number, manifest.shards[number])


@contextlib.contextmanager
def local_shard(shard: Shard) -> Generator[tuple[str, str]]:
    """A local path of a shard, and its address for messages; a remote one is copied, and the copy removed afterwards.

    Raises:
        DataError: the file cannot be read.
    """
    place = open_place(shard.url)
    with local_copy(place.fs, place.child(shard.file)) as path:
        yield path, f"{shard.url}/{shard.file}"


def over_shards(
    work: Callable[[Shard, Callable[[int], None]], Result], place: Place, manifest: Manifest, *, workers: int, what: str
) -> Iterator[tuple[Shard, Result]]:
    """Call ``work(shard, seen)`` for every shard and yield the results as they come.

    Args:
        work: a picklable function; it calls ``seen`` with the bytes it has read.
        what: label of the progress bar.

    Raises:
        DataError: ``workers`` is less than 1; also whatever ``work`` raises.
    """
    if workers < 1:
        raise DataError(f"--workers must be at least 1, got {workers}")
    shards = (shard_of(place, manifest, number) for number in range(len(manifest.shards)))
    progress = Progress(total=int(manifest.table.sizes.sum()), unit="B", what=what)
    workers = min(workers, len(manifest.shards)) if place.crosses_processes else 1
    try:
        for shard, result in run_jobs(work, shards, workers=workers, progress=progress):
            progress.finish(shard.info.bytes)
            yield shard, result
    finally:
        progress.close()


def read_blobs(path: str, positions: Sequence[int], *, where: str, at_once: int = 64) -> Iterator[bytes]:
    """The encoded records at ``positions`` of a local shard; ``where`` names it in messages.

    Raises:
        DataError: the shard is damaged.
    """
    try:
        reader = open_reader(path)
        for start in range(0, len(positions), at_once):
            yield from reader.read(list(positions[start : start + at_once]))
        reader.close()
    except (RuntimeError, IndexError) as error:
        raise DataError(f"{where} cannot be read: {error}; `verify` lists every damaged shard") from error
