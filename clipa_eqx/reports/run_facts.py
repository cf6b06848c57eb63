"""Facts about a run that do not change while it trains: model, data, length, mesh, and what identifies its config."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clipa_eqx.evals.code_version import code_version
from clipa_eqx.experiment import ExperimentConfig, operations_per_step
from clipa_eqx.json_config import to_json
from clipa_eqx.models.blocks import BlockConfig


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine that a run trains on, as the process that trains knows it.

    Attributes:
        devices: kind and number, in words.
        mesh: size of each axis.
        command: what was typed.
    """

    devices: str
    mesh: Mapping[str, int]
    command: str


def config_hash(config: ExperimentConfig) -> str:
    """The first 12 digits of the SHA-256 of a resolved config, as JSON with sorted keys."""
    content: Any = to_json(config)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def run_facts(
    config: ExperimentConfig, *, parameters: int, total_steps: int | None, machine: Machine | None
) -> list[tuple[str, str]]:
    """Name and value of each fact, in the order in which they are shown.

    Args:
        parameters: number of parameters of the model.
        total_steps: length of the run; None if it is not known.
        machine: None if the run is described by another process.
    """
    return list(_facts(config, parameters=parameters, total_steps=total_steps, machine=machine))


def _facts(
    config: ExperimentConfig, *, parameters: int, total_steps: int | None, machine: Machine | None
) -> Iterator[tuple[str, str]]:
    image, text = config.model.image, config.model.text
    yield "parameters", f"{parameters:,}"
    yield (
        "image tower",
        f"{_size(image.image_size)} px in patches of {_size(image.patch_size)}, {image.visible} tokens in training"
        f"{f' ({image.mask_ratio:.0%} of the patches masked)' if image.mask_ratio else ''}; {_blocks(image.blocks)}",
    )
    yield "text tower", f"{text.length} tokens, {text.vocab:,} pieces; {_blocks(text.blocks)}"
    yield "batch", f"{config.batch_size:,} pairs per step"
    if total_steps is not None:
        samples = total_steps * config.batch_size
        yield "length", f"{total_steps:,} steps, {samples:,} samples"
    yield "operations", f"{operations_per_step(config).total:.4g} FLOPs per step"
    yield (
        "data",
        ", ".join(
            source.folder if len(config.data.sources) == 1 else f"{source.folder} (weight {source.weight:g})"
            for source in config.data.sources
        ),
    )
    yield "captions", f"shortened by {config.data.text_reduction}"
    yield "starts from", config.init.source if config.init else "random weights"
    if config.init is not None and config.init.surgery:
        yield "surgery", ", ".join(type(one).__name__ for one in config.init.surgery)
    if config.trainable is not None:
        yield "trained", ", ".join(config.trainable)
    yield "peak learning rate", f"{config.optim.peak_lr:g}"
    yield "seed", str(config.seed)
    if machine is None:
        yield "mesh", ", ".join(f"{k} {'(the rest)' if v is None else v}" for k, v in _mesh(config))
    else:
        yield "devices", machine.devices
        yield "mesh", ", ".join(f"{axis} {size}" for axis, size in machine.mesh.items())
        yield "command", machine.command
    yield "config hash", config_hash(config)
    yield "page written by", _code()


def _code() -> str:
    """Version and commit of this package."""
    found = code_version()
    commit = f", commit {found['commit'][:12]}{' with changes' if found['changed'] else ''}" if found["commit"] else ""
    return f"clipa_eqx {found['version'] or 'of a clone'}{commit}"


def _mesh(config: ExperimentConfig) -> list[tuple[str, int | None]]:
    return [("data", config.mesh.data), ("fsdp", config.mesh.fsdp), ("tensor", config.mesh.tensor)]


def _blocks(blocks: BlockConfig) -> str:
    return f"{blocks.depth} blocks of width {blocks.width}, {blocks.heads} heads, MLP {blocks.mlp_dim}"


def _size(size: tuple[int, int]) -> str:
    """A size in pixels.

    >>> _size((84, 84)), _size((64, 96))
    ('84', '64 x 96')
    """
    return str(size[0]) if size[0] == size[1] else f"{size[0]} x {size[1]}"
