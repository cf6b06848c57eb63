"""Search for damaged shards of a record folder, local or remote, in several processes."""

from collections.abc import Callable

from clipa_eqx.data.manifest import Manifest
from clipa_eqx.data.verification import content_problem, size_problem
from conversion.records.manifests import read_manifest_of
from conversion.records.places import open_place
from conversion.records.shards import Shard, over_shards


def find_damage(url: str, *, workers: int = 1) -> tuple[Manifest, list[str]]:
    """The manifest of a record folder, and a description of each shard that is missing or changed.

    All shards are hashed.

    Raises:
        DataError: there is no folder, or no valid manifest.
    """
    place = open_place(url)
    manifest = read_manifest_of(place)
    problems: dict[int, str] = {}
    for shard, problem in over_shards(_check, place, manifest, workers=workers, what="verify"):
        if problem is not None:
            problems[shard.number] = f"{shard.info.name} {problem}"
    return manifest, [problems[number] for number in sorted(problems)]


def _check(shard: Shard, seen: Callable[[int], None]) -> str | None:
    place = open_place(shard.url)
    path = place.child(shard.file)
    size = int(place.fs.size(path)) if place.fs.exists(path) else None
    return size_problem(shard.info, size) or content_problem(shard.info, lambda: place.fs.open(path, "rb"), seen)
