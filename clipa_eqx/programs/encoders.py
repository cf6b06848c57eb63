"""The model of a program that embeds: on the devices of this process, with the settings that flags change."""

import dataclasses
from pathlib import Path
from typing import Literal

import jax

from clipa_eqx.buckets.bucket import address
from clipa_eqx.evals.prompts import PromptReduction
from clipa_eqx.programs.scored import load_scored
from clipa_eqx.progress import waiting
from clipa_eqx.saved.by_name import is_name
from clipa_eqx.search.encoder import Encoder
from clipa_eqx.sharding import MeshConfig, make_mesh


def load_encoder(
    folder: Path,
    *,
    mesh: tuple[int, int, int] | None = None,
    image_mode: Literal["exact", "fast"] | None = None,
    text_reduction: PromptReduction | None = None,
) -> Encoder:
    """Read a model folder, or a run folder, and place the model on all devices of this process.

    Args:
        mesh: sizes of the axes data, fsdp and tensor; None puts a copy on each device.
        image_mode: how images are decoded and resized; None takes the mode saved with the model.
        text_reduction: how longer texts are cut; None is as in the model's training.

    Raises:
        CheckpointError: there is no such model.
        ShardingError: the sizes do not fit the devices.
    """
    sizes = MeshConfig() if mesh is None else MeshConfig(data=mesh[0], fsdp=mesh[1], tensor=mesh[2])
    placed = make_mesh(sizes, devices=jax.local_devices())
    with waiting("reading the model"):
        scored = load_scored(folder, placed)
    preprocess = scored.preprocess
    return Encoder(
        model=scored.model,
        tokenizer=scored.tokenizer,
        preprocess=preprocess if image_mode is None else dataclasses.replace(preprocess, mode=image_mode),
        text_reduction=text_reduction or scored.text_reduction,
        weights_sha256=str(scored.identity["leaves_sha256"]),
        path=full_path(folder),
        mesh=placed,
    )


def full_path(folder: Path) -> str:
    """A model or run folder as descriptions name it: its full path, its address in a bucket, or a name."""
    given = address(folder)
    return given if "://" in given or is_name(folder) else str(folder.resolve())
