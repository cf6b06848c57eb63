"""Comparison of shards with their manifest: size and SHA-256 of one file, and the check of a whole record folder."""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from clipa_eqx.commands import command_line
from clipa_eqx.data.addresses import ShardAddresses, is_url
from clipa_eqx.data.manifest import Manifest, read_manifest
from clipa_eqx.data.shards import ShardInfo
from clipa_eqx.errors import DataError

_BLOCK = 2**22  # bytes hashed at once


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_problem(shard: ShardInfo, size: int | None) -> str | None:
    """Describe how the size of a shard file differs from the manifest; None if it does not.

    Args:
        size: bytes, None if there is no such file.
    """
    if size is None:
        return "is missing"
    if size != shard.bytes:
        return f"has {size:,} bytes instead of {shard.bytes:,}"
    return None


def content_problem(
    shard: ShardInfo,
    open_file: Callable[[], AbstractContextManager[BinaryIO]],
    seen: Callable[[int], object] | None = None,
) -> str | None:
    """Hash a shard file and describe how it differs from the manifest; None if it does not.

    Args:
        open_file: opens the file for reading.
        seen: called with the number of bytes of each block that was read, for progress.
    """
    digest = hashlib.sha256()
    try:
        with open_file() as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                if seen is not None:
                    seen(len(block))
    except OSError as error:
        return f"cannot be read: {error}"
    if digest.hexdigest() != shard.sha256:
        return f"has SHA-256 {digest.hexdigest()[:12]}... instead of {shard.sha256[:12]}..."
    return None


def verify_records(folder: str | Path) -> Manifest:
    """Hash every shard of a local record folder and compare size and hash with the manifest.

    Returns:
        The manifest, which the folder fits.

    Raises:
        DataError: there is no valid manifest, shards are in a bucket, or shards are missing or changed; the message
            lists all of them.
    """
    manifest = read_manifest(folder)
    addresses = ShardAddresses(str(folder), manifest.table)
    if remote := [one for one in addresses.folders if is_url(one)]:
        raise DataError(f"{remote[0]} is in a bucket; check it with `{command_line('records', 'verify', folder)}`")
    problems: list[str] = []
    for number, shard in enumerate(manifest.shards):
        path = Path(addresses[number])
        problem = size_problem(shard, path.stat().st_size if path.is_file() else None)
        problem = problem or content_problem(shard, partial(path.open, "rb"))
        if problem is not None:
            problems.append(f"{shard.name} {problem}")
    if problems:
        raise DataError(f"data folder {folder} is damaged: {'; '.join(problems)}; restore these files")
    return manifest
