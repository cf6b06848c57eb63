"""Work over all shards of a finished record folder, in processes and with progress."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from clipa_eqx.data.array_record_files import open_reader
from clipa_eqx.data.manifest import Manifest
from clipa_eqx.data.shards import ShardInfo
from clipa_eqx.errors import DataError
from conversion.records.places import Place
from conversion.records.workers import Progress, run_jobs

Result = TypeVar("Result")


class Shard(NamedTuple):
    """A shard of a record folder.

    Attributes:
        url: the folder.
        number: position of the shard in the manifest.
        info: entry of the shard in the manifest.
    """

    url: str
    number: int
    info: ShardInfo


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
    shards = [Shard(place.url, number, info) for number, info in enumerate(manifest.shards)]
    progress = Progress(total=sum(shard.info.bytes for shard in shards), unit="B", what=what)
    workers = min(workers, len(shards)) if place.crosses_processes else 1
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
