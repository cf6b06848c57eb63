"""A tiny model, its tokenizer and a config that trains it, for tests that never start a run."""

import dataclasses
import functools

import jax.random as jr

from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.durations import Duration
from clipa_eqx.experiment import DataConfig, DataSource, ExperimentConfig
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIP, CLIPConfig
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig
from clipa_eqx.optim import OptimConfig
from clipa_eqx.tokenizer import Tokenizer

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "of", "photo")
"""A vocabulary small enough for a tiny model."""


def tiny_tokenizer() -> Tokenizer:
    return Tokenizer(pieces=WORDS, classes=bytes([4] * len(WORDS)))


def tiny_clip_config(*, image=None, text=None, **fields) -> CLIPConfig:
    """Width 16, depth 2, 16 pixels, 8 tokens; ``image`` and ``text`` replace fields of the towers."""
    blocks = BlockConfig(width=16, depth=2, mlp_dim=24, heads=2)
    vision = VisionConfig(blocks=blocks, image_size=(16, 16), patch_size=(4, 4), embed=8)
    words = TextConfig(blocks=blocks, length=8, vocab=len(WORDS), embed=8)
    return CLIPConfig(
        image=dataclasses.replace(vision, **(image or {})), text=dataclasses.replace(words, **(text or {})), **fields
    )


def tiny_clip(seed: int = 0, **fields) -> CLIP:
    return _init(tiny_clip_config(**fields), seed)


@functools.cache
def _init(config: CLIPConfig, seed: int) -> CLIP:
    return CLIP.init(config, key=jr.key(seed))


def tiny_run(**fields) -> ExperimentConfig:
    size = (16, 16)
    chosen = {
        "model": tiny_clip_config(),
        "data": DataConfig(sources=(DataSource(folder="records"),), image=ImageConfig(size=size)),
        "optim": OptimConfig(peak_lr=1e-3),
        "batch_size": 8,
        "duration": Duration(steps=10),
        "eval_image": EvalImageConfig(size=size),
    }
    return ExperimentConfig(**(chosen | fields))
