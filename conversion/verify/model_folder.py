"""The checks of a model folder: leaves against config, checksums, finite values, embeddings of fixed inputs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipa_eqx.errors import CheckpointError, ConfigError, listed
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.progress import progress_bar
from clipa_eqx.saved.description import OPTIMIZER_FILE, check_parts
from clipa_eqx.saved.leaf_file import Leaf, LeafReader
from clipa_eqx.saved.leaf_hashes import recorded_hashes
from clipa_eqx.saved.leaf_shapes import leaf_problems
from clipa_eqx.saved.model_folder import ModelFolder, open_model_folder
from conversion.verify.identity import identity
from conversion.weights.numerics import numerics_of
from conversion.weights.self_check import embed_fixed_inputs

NORM_ATOL, EMBEDDING_ATOL = 1e-5, 1e-4
"""Tolerances for unit norms, and for embeddings recomputed on a different machine."""

_SHOWN = 3


def verify(folder: Path) -> list[str]:
    """Read a model folder once and check all of it.

    Returns:
        the results of the checks and the identity of the model, one line each.

    Raises:
        CheckpointError: lists everything that is wrong; a file that cannot be opened is reported alone.
    """
    opened = open_model_folder(folder)
    provenance = opened.provenance
    problems = [*_part_problems(opened), *_provenance_problems(opened)]
    lines = [
        f"{folder}",
        f"tokenizer: {opened.tokenizer.vocab_size} pieces, sha256 {opened.tokenizer.vocab_sha256}",
        f"images: {opened.preprocess.resize} to {'x'.join(map(str, opened.preprocess.size))}, {opened.preprocess.mode}",
    ]
    if provenance.source is not None and provenance.source.sha256 is not None:
        lines.append(f"source: {provenance.source.name}, sha256 {provenance.source.sha256}")
    # An import records checksums of all leaves, and embeddings. A field that is there but damaged is in ``extra``.
    fields = {*provenance.to_json(), *provenance.extra}
    is_needed = bool({"converter", "leaves_sha256"} & fields)
    is_imported = bool({"converter", "format", "self_check"} & fields)
    of_weights, of_optimizer = _checksums(opened, problems)
    lines += _check_weights(opened.weights, opened.config, of_weights, problems, is_needed=is_needed)
    if opened.optimizer is not None:
        lines += _check_optimizer(opened.optimizer, of_optimizer, problems, is_needed=is_needed)
    elif of_optimizer:
        problems.append(f"{OPTIMIZER_FILE} is missing; the import wrote one")
    if not problems:
        # Embeddings of wrong weights add nothing to what was found already.
        lines += _check_embeddings(folder, provenance.self_check, problems, is_needed=is_imported)
    if problems:
        raise CheckpointError(f"{folder}: {listed(problems)}")
    return [*lines, *identity(folder, opened.config)]


def _part_problems(opened: ModelFolder) -> list[str]:
    try:
        check_parts(opened.config, opened.tokenizer, opened.preprocess)
    except ConfigError as error:
        return [str(error)]
    return []


def _provenance_problems(opened: ModelFolder) -> list[str]:
    """Choices of the import that the folder no longer has; the embeddings of a small model might not show them."""
    provenance = opened.provenance
    problems: list[str] = []
    for tower, found in numerics_of(opened.config).to_json().items():
        recorded: Any = provenance.profile.get(tower)
        if recorded not in (None, found):
            problems.append(f"the {tower} tower's numerics are {found} in config.json, were {recorded} at the import")
    vocabulary = provenance.vocabulary
    if vocabulary is not None and vocabulary.sha256 != opened.tokenizer.vocab_sha256:
        problems.append(f"the vocabulary differs from that of the import, sha256 {vocabulary.sha256}")
    return problems


def _checksums(opened: ModelFolder, problems: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The recorded checksums of the weights and of the optimizer state, by leaf path."""
    try:
        of_weights, of_optimizer = (recorded_hashes(opened.provenance, of_optimizer=one) for one in (False, True))
    except CheckpointError as error:
        problems.append(str(error))
        return {}, {}
    return of_weights or {}, of_optimizer or {}


def _check_weights(
    path: Path, config: CLIPConfig, checksums: Mapping[str, str], problems: list[str], *, is_needed: bool
) -> list[str]:
    with LeafReader(path) as leaves:
        problems += leaf_problems(leaves.leaves, config)
        hashed = _check_values(leaves, checksums, problems, is_needed=is_needed)
        count = sum(int(np.prod(leaf.shape)) for leaf in leaves.leaves.values())
        total = len(leaves.leaves)
    compared = f"{hashed} of {total} leaves have the recorded sha256" if hashed else "no checksums are recorded"
    return [f"weights: {count:,} parameters in {total} leaves, all finite; {compared}"]


def _check_optimizer(path: Path, checksums: Mapping[str, str], problems: list[str], *, is_needed: bool) -> list[str]:
    with LeafReader(path) as leaves:
        hashed = _check_values(leaves, checksums, problems, is_needed=is_needed)
        return [f"optimizer state: {len(leaves.leaves)} leaves, {hashed} with the recorded sha256"]


def _check_values(leaves: LeafReader, checksums: Mapping[str, str], problems: list[str], *, is_needed: bool) -> int:
    """Check that all values are finite and have the recorded hash; returns how many leaves have one.

    Args:
        is_needed: every leaf must have a recorded hash.
    """
    file = leaves.path.name
    size = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves.leaves.values())
    with progress_bar(what=file, total=size, unit="B") as bar:
        for name, leaf in leaves.leaves.items():
            if leaf.dtype.kind != "i" and not all(np.isfinite(part).all() for part in _parts(leaves, name, leaf)):
                problems.append(f"not finite: {name}")
            if name in checksums and leaves.checksum(name, advance=bar.update) != checksums[name]:
                problems.append(f"sha256 of {name} is not the recorded one: {file} was changed or is damaged")
    problems += [
        f"a checksum is recorded for {name} of {file}, which is not there"
        for name in sorted(checksums.keys() - leaves.leaves.keys())
    ]
    bare = sorted(leaves.leaves.keys() - checksums.keys())
    if is_needed and bare:
        more = f" and {len(bare) - _SHOWN} more" if len(bare) > _SHOWN else ""
        problems.append(f"no checksum is recorded for {', '.join(bare[:_SHOWN])}{more} of {file}; every leaf needs one")
    return len(leaves.leaves) - len(bare)


def _parts(leaves: LeafReader, name: str, leaf: Leaf) -> Iterator[np.ndarray]:
    """A leaf layer by layer, so that a large one needs no large temporary array."""
    if "/blocks/" in name and leaf.shape:
        yield from (leaves.read(name, layer) for layer in range(leaf.shape[0]))
    else:
        yield leaves.read(name)


def _check_embeddings(folder: Path, recorded: Mapping[str, Any], problems: list[str], *, is_needed: bool) -> list[str]:
    found = embed_fixed_inputs(folder).report()
    for tower, one in found.items():
        if not np.allclose(one["unit_norm"], 1.0, rtol=0, atol=NORM_ATOL):
            problems.append(f"{tower} embeddings of fixed inputs have norms {one['unit_norm']}, expected 1")
    try:
        then: Any = recorded["embeddings"]
        for tower in found:
            ours, theirs = (np.asarray(values[tower]["first_values"], float) for values in (found, then))
            if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=0, atol=EMBEDDING_ATOL):
                problems.append(f"{tower} embeddings of fixed inputs differ from those recorded at the import")
        compared = f"as at the import, to {EMBEDDING_ATOL:g}"
    except (KeyError, TypeError, ValueError):
        compared = "none are recorded to compare with"
        if is_needed:
            problems.append("no embeddings to compare with are recorded; the import writes them")
    return [f"embeddings of fixed inputs: norm 1; {compared}"]
