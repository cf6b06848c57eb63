"""Tiny models whose zero-shot or retrieval score on given images is known: the image head is solved for it."""

import functools
from functools import partial

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from clipa_eqx.data.images.evaluation import EvalImageConfig, eval_image
from clipa_eqx.evals.encode import encode_features, encode_texts
from clipa_eqx.evals.prompts import class_prompts
from clipa_eqx.evals.zero_shot import class_embeddings
from clipa_eqx.saved.model import save_model
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from support.flax_checkpoints import random_clip
from support.tiny_models import tiny_clip_config

PREPROCESS = EvalImageConfig(size=(16, 16), resize="squash")
LENGTH, WIDTH = 16, 48


def plant(folder, wanted, *, templates=None):
    """Save a model that embeds each image like a text; the folder.

    Args:
        wanted: by image (encoded bytes), the class name or caption; fewer images than ``WIDTH``.
        templates: those of a zero-shot score, of which a name has the mean embedding; None for captions as they are.
    """
    assert len(wanted) < WIDTH
    tokenizer = Tokenizer.bert()
    model = _random(tokenizer.vocab_size)
    pixels = np.stack([eval_image(image, PREPROCESS) for image in wanted])
    features = np.asarray(encode_features(model, pixels), np.float64)
    texts = list(wanted.values())
    prompts = [[text] for text in texts] if templates is None else class_prompts(texts, templates)
    tokens = [tokenizer(one, length=LENGTH).ids for one in prompts]
    targets = class_embeddings(partial(encode_texts, model), tokens, batch_size=64)
    weight = np.linalg.lstsq(features, targets.astype(np.float64), rcond=None)[0].T
    model = eqx.tree_at(lambda one: one.image.head.weight, model, jnp.asarray(weight, jnp.float32))
    return save_model(folder, model, tokenizer=tokenizer, preprocess=PREPROCESS, provenance={})


@functools.cache
def _random(vocab):
    blocks = {"width": WIDTH, "depth": 1, "mlp_dim": 64, "heads": 4}
    return random_clip(tiny_clip_config(blocks=blocks, text={"length": LENGTH, "vocab": vocab}))
