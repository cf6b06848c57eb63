"""SHA-256 of the leaves of a model folder, compared with those that its provenance records."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from clipa_eqx.errors import CheckpointError, listed
from clipa_eqx.saved.description import FORMER_OPTIMIZER_FILE, OPTIMIZER_FILE, read_json
from clipa_eqx.saved.kinds import PROVENANCE_FILE
from clipa_eqx.saved.leaf_file import LeafReader
from clipa_eqx.saved.provenance import Provenance

_THREADS = 8
_OF_OPTIMIZER = (f"{OPTIMIZER_FILE}/", f"{FORMER_OPTIMIZER_FILE}/")


def array_hashes(leaves: Mapping[str, np.ndarray]) -> dict[str, str]:
    """SHA-256 of the bytes of each array, in hex, on several threads."""
    return _hashes(leaves, lambda path: hashlib.sha256(_bytes(leaves[path])).hexdigest())


def recorded_hashes(provenance: Provenance, *, of_optimizer: bool) -> dict[str, str] | None:
    """The recorded SHA-256 of each leaf of the weights, or of the optimizer state; None if there is no record at all.

    Raises:
        CheckpointError: the record is not an object of texts.
    """
    if "leaves_sha256" in provenance.extra:
        kind = type(provenance.extra["leaves_sha256"]).__name__
        raise CheckpointError(f"the recorded checksums are {kind}, expected an object of texts")
    if provenance.leaves_sha256 is None:
        return None
    recorded = provenance.leaves_sha256.items()
    if of_optimizer:
        return {path.split("/", 1)[1]: one for path, one in recorded if path.startswith(_OF_OPTIMIZER)}
    return {path: one for path, one in recorded if not path.startswith(_OF_OPTIMIZER)}


def check_hashes(found: Mapping[str, str], recorded: Mapping[str, str] | None, *, where: str) -> None:
    """Compare the hashes of all leaves of a file with the recorded ones; without a record nothing is compared.

    Args:
        where: the file, in words.

    Raises:
        CheckpointError: a leaf has another hash, or none is recorded for it; the message names every such leaf.
    """
    if recorded is None:
        return
    problems = [
        f"no checksum is recorded for {path}; every leaf needs one"
        if path not in recorded
        else f"sha256 of {path} is not the recorded one: the file was changed or is damaged"
        for path, one in found.items()
        if recorded.get(path) != one
    ]
    if problems:
        raise CheckpointError(f"{where}: restore the folder from a copy, or write it again, {listed(problems)}")


def check_file(leaves: LeafReader, folder: Path) -> None:
    """Compare all leaves of an open file with the hashes that the model folder records; raises as ``check_hashes``.

    A folder without provenance, such as one that a program made for itself, has no record.
    """
    if not (folder / PROVENANCE_FILE).exists():
        return
    of_optimizer = leaves.path.name in (OPTIMIZER_FILE, FORMER_OPTIMIZER_FILE)
    recorded = recorded_hashes(Provenance.from_json(read_json(folder / PROVENANCE_FILE)), of_optimizer=of_optimizer)
    if recorded is not None:
        check_hashes(_hashes(leaves.leaves, leaves.checksum), recorded, where=str(leaves.path))


def _hashes(paths: Iterable[str], hash_one: Callable[[str], str]) -> dict[str, str]:
    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(paths, threads.map(hash_one, paths), strict=True))


def _bytes(values: np.ndarray) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
