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
from clipa_eqx.tokenizer.vocabulary import SPECIAL
from clipa_eqx.tokenizer.wordpiece import Tokenizer

SIZE, LENGTH, VOCAB = (16, 16), 8, 64
WORDS = ("a", "cat", "dog", "of", "photo", *(f"w{i}" for i in range(VOCAB - len(SPECIAL) - 5)))
PIECES = (*SPECIAL, *WORDS)
"""The vocabulary of the tiny model."""


def tiny_tokenizer() -> Tokenizer:
    return Tokenizer(pieces=PIECES, classes=bytes([4] * len(PIECES)))


def tiny_clip_config(*, image=None, text=None, blocks=None, **fields) -> CLIPConfig:
    """Width 32, depth 2, 16 pixels, 4 patches, 8 tokens, 64 pieces.

    ``image`` and ``text`` replace fields of the towers, ``blocks`` fields of both towers' blocks.
    """
    both = BlockConfig(**{"width": 32, "depth": 2, "mlp_dim": 64, "heads": 2, **(blocks or {})})
    vision = VisionConfig(blocks=both, image_size=SIZE, patch_size=(8, 8), embed=16)
    words = TextConfig(blocks=both, length=LENGTH, vocab=VOCAB, embed=16)
    return CLIPConfig(
        image=dataclasses.replace(vision, **(image or {})), text=dataclasses.replace(words, **(text or {})), **fields
    )


def tiny_clip(seed: int = 0, **fields) -> CLIP:
    return _init(tiny_clip_config(**fields), seed)


@functools.cache
def _init(config: CLIPConfig, seed: int) -> CLIP:
    return CLIP.init(config, key=jr.key(seed))


def tiny_run(**fields) -> ExperimentConfig:
    chosen = {
        "model": tiny_clip_config(),
        "data": DataConfig(sources=(DataSource(folder="records"),), image=ImageConfig(size=SIZE)),
        "optim": OptimConfig(peak_lr=1e-3),
        "batch_size": 8,
        "duration": Duration(steps=10),
        "eval_image": EvalImageConfig(size=SIZE),
    }
    return ExperimentConfig(**(chosen | fields))
