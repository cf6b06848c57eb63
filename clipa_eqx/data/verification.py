"""SHA-256 of shards: the hash of one file, and the check of all files of a record folder."""

import hashlib
from pathlib import Path

from clipa_eqx.data.manifest import Manifest, read_manifest
from clipa_eqx.errors import DataError


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_records(folder: str | Path) -> Manifest:
    """Hash every shard of a local record folder and compare size and hash with the manifest.

    Returns:
        The manifest, which the folder fits.

    Raises:
        DataError: there is no valid manifest, or shards are missing or changed; the message lists all of them.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    problems: list[str] = []
    for shard in manifest.shards:
        path = folder / shard.name
        if not path.is_file():
            problems.append(f"{shard.name} is missing")
        elif (size := path.stat().st_size) != shard.bytes:
            problems.append(f"{shard.name} has {size} bytes, expected {shard.bytes}")
        elif (digest := hash_file(path)) != shard.sha256:
            problems.append(f"{shard.name} has SHA-256 {digest[:12]}..., expected {shard.sha256[:12]}...")
    if problems:
        raise DataError(f"data folder {folder} is damaged: {'; '.join(problems)}; restore these files")
    return manifest
