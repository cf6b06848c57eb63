"""Whether a model folder is whole and what it is: `python -m conversion.verify DIR` checks hashes, counts and norms."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipa_eqx.errors import CheckpointError, listed

if TYPE_CHECKING:
    import numpy as np

    from clipa_eqx.models.clip import CLIPConfig
    from clipa_eqx.saved.leaf_file import Leaf, LeafReader
    from clipa_eqx.tokenizer import Tokenizer
    from conversion.weights.released import ReleasedModel

NORM_ATOL, EMBEDDING_ATOL = 1e-5, 1e-4
"""Of unit norms, and of embeddings computed on another machine than that of the import."""


def verify(folder: Path) -> list[str]:
    """Read everything once: leaves against config, checksums, finite values, embeddings of the fixed inputs.

    Returns what was found to be right, one line each.

    Raises:
        CheckpointError: lists all that is wrong; what cannot even be opened is said first, by itself.
    """
    from clipa_eqx.errors import ConfigError
    from clipa_eqx.saved.description import (
        PROVENANCE_FILE,
        TOKENIZER_FOLDER,
        WEIGHTS_FILE,
        check_parts,
        load_model_config,
        load_preprocess,
        optimizer_file,
        read_json,
    )
    from clipa_eqx.tokenizer import Tokenizer

    config = load_model_config(folder)
    provenance = read_json(folder / PROVENANCE_FILE)
    tokenizer, preprocess = Tokenizer.load(folder / TOKENIZER_FOLDER), load_preprocess(folder)
    problems: list[str] = []
    try:
        check_parts(config, tokenizer, preprocess)
    except ConfigError as error:
        problems.append(str(error))
    lines = [
        f"{folder}",
        f"tokenizer: {tokenizer.vocab_size} pieces, sha256 {tokenizer.vocab_sha256}",
        f"pictures: {preprocess.resize} to {preprocess.size[0]}x{preprocess.size[1]}, {preprocess.mode}",
    ]
    source = provenance.get("source")
    if isinstance(source, dict):
        lines.append(f"source: {source.get('name')}, sha256 {source.get('sha256')}")
    problems += _provenance_problems(provenance, config, tokenizer)
    # An import writes both, and all that is checked here; models trained here have neither.
    is_imported = bool({"converter", "leaves_sha256"} & provenance.keys())
    checksums = _recorded_checksums(provenance, problems)
    optimizer = optimizer_file(folder)
    prefix = f"{optimizer.name}/"
    of_weights = {name: one for name, one in checksums.items() if not name.startswith(prefix)}
    of_optimizer = {name.removeprefix(prefix): one for name, one in checksums.items() if name.startswith(prefix)}
    lines += _check_leaves(folder / WEIGHTS_FILE, config, of_weights, problems, is_needed=is_imported)
    if optimizer.exists():
        lines += _check_optimizer(optimizer, of_optimizer, problems, is_needed=is_imported)
    elif of_optimizer:
        problems.append(f"{optimizer.name} is missing; the import wrote one")
    if not problems:
        # Of weights that are not what they should be, embeddings say nothing.
        lines += _check_embeddings(folder, provenance.get("self_check"), problems, is_needed=is_imported)
    if problems:
        raise CheckpointError(f"{folder}: {listed(problems)}")
    return [*lines, *_identity(folder, config)]


def _provenance_problems(provenance: dict[str, Any], config: "CLIPConfig", tokenizer: "Tokenizer") -> list[str]:
    """What was chosen at the import and is no longer so; on a small model the embeddings would not tell."""
    from conversion.weights.numerics import numerics_of

    problems: list[str] = []
    profile, vocabulary = provenance.get("profile"), provenance.get("vocabulary")
    if isinstance(profile, dict):
        for tower, found in numerics_of(config).items():
            recorded: Any = profile.get(tower)
            if recorded not in (None, found):
                problems.append(
                    f"the {tower} tower's numerics are {found} in config.json, were {recorded} at the import"
                )
    if isinstance(vocabulary, dict) and vocabulary.get("sha256") != tokenizer.vocab_sha256:
        problems.append(f"the vocabulary is not that of the import, sha256 {vocabulary.get('sha256')}")
    return problems


def _recorded_checksums(provenance: dict[str, Any], problems: list[str]) -> dict[str, str]:
    recorded: Any = provenance.get("leaves_sha256", {})
    if isinstance(recorded, dict):
        return recorded
    problems.append(f"the recorded checksums are {type(recorded).__name__}, expected an object")
    return {}


def _check_leaves(
    path: Path, config: "CLIPConfig", checksums: dict[str, str], problems: list[str], *, is_needed: bool
) -> list[str]:
    import numpy as np

    from clipa_eqx.saved.leaf_file import LeafReader
    from clipa_eqx.saved.leaf_shapes import leaf_problems

    with LeafReader(path) as leaves:
        problems += leaf_problems(leaves.leaves, config)
        hashed = _check_values(leaves, checksums, problems, is_needed=is_needed)
        count = sum(int(np.prod(leaf.shape)) for leaf in leaves.leaves.values())
        total = len(leaves.leaves)
    compared = f"{hashed} of {total} leaves have the recorded sha256" if hashed else "no checksums are recorded"
    return [f"weights: {count:,} parameters in {total} leaves, all finite; {compared}"]


def _check_optimizer(path: Path, checksums: dict[str, str], problems: list[str], *, is_needed: bool) -> list[str]:
    from clipa_eqx.saved.leaf_file import LeafReader

    with LeafReader(path) as leaves:
        hashed = _check_values(leaves, checksums, problems, is_needed=is_needed)
        return [f"optimizer state: {len(leaves.leaves)} leaves, {hashed} with the recorded sha256"]


def _check_values(leaves: "LeafReader", checksums: dict[str, str], problems: list[str], *, is_needed: bool) -> int:
    """Look at every leaf and hash it; returns how many have a recorded hash, which they then fulfill.

    Args:
        is_needed: every leaf must have one, as an import writes them all.
    """
    import numpy as np
    from tqdm import tqdm

    file = leaves.path.name
    size = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves.leaves.values())
    with tqdm(total=size, desc=file, unit="B", unit_scale=True, delay=2) as bar:
        for name, leaf in leaves.leaves.items():
            if leaf.dtype.kind != "i" and not all(np.isfinite(part).all() for part in _parts(leaves, name, leaf)):
                problems.append(f"not finite: {name}")
            if name in checksums and leaves.checksum(name, advance=bar.update) != checksums[name]:
                problems.append(f"sha256 of {name} is not the recorded one: {file} was changed or is damaged")
    problems += [
        f"a checksum is recorded for {name} of {file}, which is not there"
        for name in checksums.keys() - leaves.leaves.keys()
    ]
    bare = sorted(leaves.leaves.keys() - checksums.keys())
    if is_needed and bare:
        more = f" and {len(bare) - 3} more" if len(bare) > 3 else ""
        problems.append(f"no checksum is recorded for {', '.join(bare[:3])}{more} of {file}; the import writes all")
    return len(leaves.leaves) - len(bare)


def _parts(leaves: "LeafReader", name: str, leaf: "Leaf") -> Iterator["np.ndarray"]:
    """A leaf layer by layer, so that a large one needs no large temporary."""
    if "/blocks/" in name and leaf.shape:
        yield from (leaves.read(name, layer) for layer in range(leaf.shape[0]))
    else:
        yield leaves.read(name)


def _check_embeddings(folder: Path, recorded: Any, problems: list[str], *, is_needed: bool) -> list[str]:
    import numpy as np

    from conversion.weights.self_check import embed_fixed_inputs

    found = embed_fixed_inputs(folder).report()
    for tower, one in found.items():
        if not np.allclose(one["unit_norm"], 1.0, rtol=0, atol=NORM_ATOL):
            problems.append(f"{tower} embeddings of fixed inputs have norms {one['unit_norm']}, expected 1")
    try:
        then: Any = recorded["embeddings"]
        for tower in found:
            ours, theirs = (np.asarray(values[tower]["first_values"], float) for values in (found, then))
            if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=0, atol=EMBEDDING_ATOL):
                problems.append(f"{tower} embeddings of fixed inputs are not those recorded at the import")
        compared = f"as at the import, to {EMBEDDING_ATOL:g}"
    except (KeyError, TypeError, ValueError):
        compared = "none are recorded to compare with"
        if is_needed:
            problems.append("no embeddings to compare with are recorded; the import writes them")
    return [f"embeddings of fixed inputs: norm 1; {compared}"]


def _identity(folder: Path, config: "CLIPConfig") -> list[str]:
    """What it is by its config, what it should score, and the command that scores it."""
    from conversion.weights.numerics import numerics_of, profile_of

    profile = profile_of(numerics_of(config))
    rows = _released_rows(config, profile)
    lines = [f"numerics profile: {profile}"]
    lines += [f"preset: {', '.join(_presets(config)) or 'none'}"]
    templates = "open_clip" if profile == "open_clip" else "clip_paper"
    reduction = next((f" --text-reduction {row.text_reduction}" for row in rows if row.length < 32), "")
    lines += [f"has the sizes of {row.name}, published at {row.score} % ({row.url})" for row in rows]
    return [
        *lines,
        "score it with:",
        f"python scripts/evaluate.py {folder} --suite zero-shot --data IMAGENET_RECORDS --class-names imagenet "
        f"--templates {templates}{reduction} --out result.json",
    ]


def _presets(config: "CLIPConfig") -> list[str]:
    from clipa_eqx.models.presets import PRESETS, preset
    from clipa_eqx.saved.leaf_shapes import leaf_shapes

    shapes, (height, width) = leaf_shapes(config), config.image.image_size
    names: list[str] = []
    for name in PRESETS:
        patch = int(name.split("/")[1])
        if height == width and height % patch == 0:
            known = preset(name, image_size=height, length=config.text.length)
            if leaf_shapes(known) == shapes:
                names.append(f"{name} at {height} px with {config.text.length} tokens")
    return names


def _released_rows(config: "CLIPConfig", profile: str) -> "list[ReleasedModel]":
    from clipa_eqx.saved.leaf_shapes import leaf_shapes
    from conversion.weights.released import RELEASED

    rows = [row for row in RELEASED.values() if row.profile == profile and row.length == config.text.length]
    fitting = [row for row in rows if config.image.image_size == (row.image_size, row.image_size)]
    if not fitting:
        return []
    shapes = leaf_shapes(config)
    known = {
        name: leaf_shapes(next(r for r in fitting if r.preset == name).config()) for name in {r.preset for r in fitting}
    }
    return [row for row in fitting if known[row.preset] == shapes]
