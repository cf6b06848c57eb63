"""Random parts depend on the key, all others do not; each row has its own random numbers."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from support import tiny_runs
from support.tiny_models import tiny_clip_config

from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIP
from clipa_eqx.precision import Precision
from clipa_eqx.training.gradients import batch_loss
from clipa_eqx.training.step import step_key

pytestmark = pytest.mark.usefixtures("quick_compile")

BATCH = 8


def loss_of(*, image=None, text=None):
    """A function from key (or None) to the loss of a fixed batch, of a model whose towers have these rates."""
    rates = {"image": dict(image or {}), "text": dict(text or {})}
    mask_ratio = rates["image"].pop("mask_ratio", 0.0)
    blocks = {tower: BlockConfig(width=32, depth=2, mlp_dim=64, heads=2, **chosen) for tower, chosen in rates.items()}
    config = tiny_clip_config(
        image={"blocks": blocks["image"], "mask_ratio": mask_ratio}, text={"blocks": blocks["text"]}
    )
    model = CLIP.init(config, key=jr.key(0))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (BATCH, *tiny_runs.SIZE, 3), dtype=np.uint8))
    tokens = jnp.asarray(rng.integers(0, tiny_runs.VOCAB, (BATCH, tiny_runs.LENGTH), dtype=np.int32))

    @jax.jit
    def loss(model, key):
        return batch_loss(model, images, tokens, key=key, precision=Precision()).loss

    return lambda key: float(loss(model, key))


CASES = [
    ({"image": {"dropout": 0.3}}, "dropout of the image tower"),
    ({"text": {"dropout": 0.3}}, "dropout of the text tower"),
    ({"image": {"drop_path": 0.5}}, "drop-path of the image tower"),
    ({"text": {"drop_path": 0.5}}, "drop-path of the text tower"),
    ({"image": {"mask_ratio": 0.5}}, "masking"),
]


@pytest.mark.parametrize("rates", [case for case, _ in CASES], ids=[name for _, name in CASES])
def test_two_keys_give_two_losses_and_no_key_gives_one(rates):
    loss = loss_of(**rates)
    one, other, plain = loss(jr.key(1)), loss(jr.key(2)), loss(None)
    assert len({one, other, plain}) == 3
    assert loss(jr.key(1)) == one
    assert plain == deterministic_loss()


def test_a_key_changes_nothing_if_all_rates_are_zero():
    assert loss_of()(jr.key(1)) == deterministic_loss()


@functools.cache
def deterministic_loss():
    return loss_of()(None)


def test_rows_have_independent_random_numbers():
    config = tiny_clip_config(blocks={"dropout": 0.5})
    model = CLIP.init(config, key=jr.key(0))
    image = np.zeros((2, *tiny_runs.SIZE, 3), np.float32)
    keys = jr.split(step_key(0, 0), 2)
    a, b = jax.jit(jax.vmap(lambda x, k: model.image(x, key=k)))(image, keys)
    assert not np.allclose(a, b)


def test_each_step_and_each_seed_has_its_own_key():
    keys = {jr.key_data(step_key(seed, step)).tobytes() for seed in range(3) for step in range(50)}
    assert len(keys) == 150
