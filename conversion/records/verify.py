"""Hash the shards of a record folder again."""

import hashlib
from collections.abc import Callable

from clipa_eqx.data.manifest import Manifest
from conversion.records.destination import read_manifest_of
from conversion.records.files import open_place
from conversion.records.shards import Shard, over_shards

_BLOCK = 2**22


def verify(url: str, *, workers: int = 1) -> tuple[Manifest, list[str]]:
    """The manifest of a folder, and what is wrong with each shard that is missing or changed (nothing: all is well).

    Raises:
        DataError: there is no folder, or no manifest that is valid and closes.
    """
    place = open_place(url)
    manifest = read_manifest_of(place)
    problems: dict[int, str] = {}
    for shard, problem in over_shards(_check, place, manifest, workers=workers, what="verify"):
        if problem is not None:
            problems[shard.number] = f"{shard.info.name} {problem}"
    return manifest, [problems[number] for number in sorted(problems)]


def _check(shard: Shard, seen: Callable[[int], None]) -> str | None:
    place, info = open_place(shard.url), shard.info
    path = place.child(info.name)
    if not place.fs.exists(path):
        return "is missing"
    if (size := int(place.fs.size(path))) != info.bytes:
        return f"has {size:,} bytes instead of {info.bytes:,}"
    digest = hashlib.sha256()
    try:
        with place.fs.open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                seen(len(block))
    except OSError as error:
        return f"cannot be read: {error}"
    if digest.hexdigest() != info.sha256:
        return f"has SHA-256 {digest.hexdigest()[:12]}... instead of {info.sha256[:12]}..."
    return None
