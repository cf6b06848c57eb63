"""Whether a model folder is whole and what it is: `python -m conversion.verify DIR` checks hashes, counts and norms."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clipa_eqx.cli import run
from clipa_eqx.errors import CheckpointError

if TYPE_CHECKING:
    from clipa_eqx.models.clip import CLIPConfig
    from conversion.released import ReleasedModel

NORM_ATOL, EMBEDDING_ATOL = 1e-5, 1e-4
"""Of unit norms, and of embeddings computed on another machine than that of the import."""


class Verified(NamedTuple):
    """What was found to be right, one line each."""

    lines: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m conversion.verify",
        description=__doc__,
        epilog="Exit codes: 0 all is right, 2 something is not (all of it is listed), 1 anything else.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a model folder")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # on a TPU host a training run may hold the devices
    for line in verify(arguments.folder).lines:
        print(line)


def verify(folder: Path) -> Verified:
    """Read everything once: leaves against config, checksums, finite values, embeddings of the fixed inputs.

    Raises:
        CheckpointError: lists all that is wrong; what cannot even be opened is said first, by itself.
    """
    from clipa_eqx.artefact_folder import (
        OPTIMISER_FILE,
        PROVENANCE_FILE,
        TOKENIZER_FOLDER,
        WEIGHTS_FILE,
        load_model_config,
        read_json,
    )
    from clipa_eqx.tokenizer import Tokenizer

    config = load_model_config(folder)
    provenance = read_json(folder / PROVENANCE_FILE)
    tokenizer = Tokenizer.load(folder / TOKENIZER_FOLDER)
    problems: list[str] = []
    lines = [f"{folder}", f"tokenizer: {tokenizer.vocab_size} pieces, sha256 {tokenizer.vocab_sha256}"]
    source = provenance.get("source")
    if isinstance(source, dict):
        lines.append(f"source: {source.get('name')}, sha256 {source.get('sha256')}")
    recorded: Any = provenance.get("leaves_sha256")
    checksums: dict[str, str] = recorded if isinstance(recorded, dict) else {}
    lines += _check_leaves(folder / WEIGHTS_FILE, config, checksums, problems)
    if (folder / OPTIMISER_FILE).exists():
        lines += _check_optimiser(folder / OPTIMISER_FILE, checksums, problems)
    elif any(name.startswith(f"{OPTIMISER_FILE}/") for name in checksums):
        problems.append(f"{OPTIMISER_FILE} is missing; the import wrote one")
    if not problems:
        # Of weights that are not what they should be, embeddings say nothing.
        lines += _check_embeddings(folder, provenance.get("self_check"), problems)
    if problems:
        raise CheckpointError(f"{folder}: {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    return Verified((*lines, *_identity(folder, config)))


def _check_leaves(path: Path, config: "CLIPConfig", checksums: dict[str, str], problems: list[str]) -> list[str]:
    import numpy as np

    from clipa_eqx.leaf_file import LeafReader
    from conversion.rules import leaf_shapes

    wanted = leaf_shapes(config)
    with LeafReader(path) as leaves:
        problems += [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in leaves.leaves]
        problems += [f"unused: {name}" for name in leaves.leaves if name not in wanted]
        for name, leaf in leaves.leaves.items():
            if name in wanted and (leaf.shape != wanted[name] or leaf.dtype != np.dtype(np.float32)):
                problems.append(f"{name} is {leaf.dtype}{leaf.shape}, expected float32{wanted[name]}")
        hashed = _check_checksums(leaves, "", checksums, problems, desc="weights")
        count = sum(int(np.prod(leaf.shape)) for leaf in leaves.leaves.values())
    compared = f"{hashed} of {len(wanted)} leaves have the recorded sha256" if hashed else "no checksums are recorded"
    return [f"weights: {count:,} parameters in {len(wanted)} leaves, all finite; {compared}"]


def _check_optimiser(path: Path, checksums: dict[str, str], problems: list[str]) -> list[str]:
    from clipa_eqx.leaf_file import LeafReader

    with LeafReader(path) as leaves:
        hashed = _check_checksums(leaves, f"{path.name}/", checksums, problems, desc="optimiser")
        return [f"optimiser state: {len(leaves.leaves)} leaves, {hashed} with the recorded sha256"]


def _check_checksums(leaves: Any, prefix: str, checksums: dict[str, str], problems: list[str], *, desc: str) -> int:
    """Hash and look at every leaf; returns how many have a recorded hash, which they then fulfil."""
    import numpy as np
    from tqdm import tqdm

    size = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves.leaves.values())
    hashed = 0
    with tqdm(total=size, desc=desc, unit="B", unit_scale=True, delay=2) as bar:
        for name, leaf in leaves.leaves.items():
            if leaf.dtype.kind != "i" and not all(np.isfinite(part).all() for part in _parts(leaves, name, leaf)):
                problems.append(f"not finite: {name}")
            expected = checksums.get(prefix + name)
            if expected is not None and leaves.checksum(name, advance=bar.update) != expected:
                problems.append(f"sha256 of {prefix}{name} is not the recorded one: the file was changed or is damaged")
            hashed += expected is not None
    problems += [
        f"a checksum is recorded for {name}, which is not there"
        for name in checksums
        if name.startswith(prefix) and "safetensors/" not in name.removeprefix(prefix)
        and name.removeprefix(prefix) not in leaves.leaves
    ]  # fmt: skip
    return hashed


def _parts(leaves: Any, name: str, leaf: Any) -> Iterator[Any]:
    """A leaf layer by layer, so that a large one needs no large temporary."""
    if "/blocks/" in name and leaf.shape:
        yield from (leaves.read(name, layer) for layer in range(leaf.shape[0]))
    else:
        yield leaves.read(name)


def _check_embeddings(folder: Path, recorded: Any, problems: list[str]) -> list[str]:
    import numpy as np

    from conversion.self_check import embed_fixed_inputs

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
    return [f"embeddings of fixed inputs: norm 1; {compared}"]


def _identity(folder: Path, config: "CLIPConfig") -> list[str]:
    """What it is by its config, what it should score, and the command that scores it."""
    from conversion.infer import PROFILES

    numerics = {tower.blocks.norm_eps: tower.blocks.gelu for tower in (config.image, config.text)}
    profile = next((n for n, p in PROFILES.items() if numerics == {p["norm_eps"]: p["gelu"]}), "custom")
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
    from conversion.rules import leaf_shapes

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
    from conversion.released import RELEASED
    from conversion.rules import leaf_shapes

    rows = [row for row in RELEASED.values() if row.profile == profile and row.length == config.text.length]
    fitting = [row for row in rows if config.image.image_size == (row.image_size, row.image_size)]
    if not fitting:
        return []
    shapes = leaf_shapes(config)
    known = {
        name: leaf_shapes(next(r for r in fitting if r.preset == name).config()) for name in {r.preset for r in fitting}
    }
    return [row for row in fitting if known[row.preset] == shapes]


if __name__ == "__main__":
    sys.exit(run(main))
