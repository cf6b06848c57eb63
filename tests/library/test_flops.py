"""The count of operations equals that of the matrix products in the traced step."""

import math
import re

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from support.tiny_models import tiny_clip_config

from clipa_eqx.flops import step_flops
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.precision import Precision
from clipa_eqx.surgery.low_rank import lora as add_lora
from clipa_eqx.surgery.low_rank import ranks
from clipa_eqx.training.gradients import batch_gradients, batch_loss
from clipa_eqx.trees import leaves_by_path, map_with_path

BATCH = 4


def traced(config):
    """The gradient function of the step, and its abstract arguments."""
    key = jax.eval_shape(lambda: jr.key(0))
    images = jax.ShapeDtypeStruct((BATCH, *config.image.image_size, 3), jnp.uint8)
    tokens = jax.ShapeDtypeStruct((BATCH, config.text.length), jnp.int32)

    def loss(model, images, tokens, key):
        return batch_loss(model, images, tokens, key=key, precision=Precision()).loss

    return jax.grad(loss), (abstract_clip(config), images, tokens, key)


def product_flops(jaxpr):
    """Two operations per multiply-add of all matrix products; loops count as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (inner, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in inner)
        for value in equation.params.values():
            inside = getattr(value, "jaxpr", value)
            if hasattr(inside, "eqns"):
                total += equation.params.get("length", 1) * product_flops(inside)
    return total


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"blocks": {"depth": 3}},
        {"image": {"mask_ratio": 0.5}},
        {"image": {"pool": "map", "patch": "linear"}},
        {"image": {"image_size": (16, 32), "embed": None}, "text": {"length": 5, "embed": None}},
    ],
    ids=["plain", "deep", "masked", "map", "without heads"],
)
def test_the_count_is_that_of_the_traced_gradient(fields):
    config = tiny_clip_config(**fields)
    gradient, arguments = traced(config)
    assert step_flops(config, batch_size=BATCH).total == product_flops(jax.make_jaxpr(gradient)(*arguments).jaxpr)


@pytest.mark.parametrize(
    ("trainable", "lora"),
    [
        (".*/head/weight", ()),
        ("text/.*", ()),
        ("image/blocks/attn/q/bias", ()),
        (".*/lora_.*", ("text/.*/fc_in/weight",)),
    ],
    ids=["heads", "text tower", "a bias", "lora"],
)
def test_the_count_of_a_step_that_trains_some_leaves_is_that_of_its_traced_gradient(trainable, lora):
    config = tiny_clip_config()
    model = abstract_clip(config)
    if lora:
        model = jax.eval_shape(lambda m: add_lora(m, rank=3, alpha=1.0, targets=lora, key=jr.key(0)).model, model)
    trained = map_with_path(lambda path, _: re.fullmatch(trainable, path) is not None, model)
    _, (_, *arguments) = traced(config)

    def gradient(model, images, tokens, key):
        return batch_gradients(model, images, tokens, key=key, precision=Precision(), trained=trained)[0]

    counted = product_flops(jax.jit(gradient).trace(model, *arguments).jaxpr.jaxpr)
    paths = {path for path, is_trained in leaves_by_path(trained).items() if is_trained}
    assert step_flops(config, batch_size=BATCH, trained=paths, ranks=ranks(model)).total == counted


def test_the_compilers_count_for_one_wide_block_is_a_few_percent_higher():
    # It also counts elementwise operations, whose share is smaller the wider the model is.
    config = tiny_clip_config(blocks={"depth": 1, "width": 512, "mlp_dim": 2048})
    gradient, arguments = traced(config)
    counted = jax.jit(gradient).lower(*arguments).cost_analysis()["flops"]
    np.testing.assert_allclose(counted, step_flops(config, batch_size=BATCH).total, rtol=0.05)
