"""Guards that the float64 replay of both towers agrees with the towers themselves, step by step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.random_models import random_model
from support.tiny_models import tiny_clip_config

from clipa_eqx.trees import layer_path, leaves_by_path, stacked_depth
from conversion.compare.replay import patches_of, replay, run_step

pytestmark = pytest.mark.usefixtures("quick_compile")

CASES = {
    "gap, last": {},
    "tok, sincos1d, tok": {"image": {"pool": "tok"}, "text": {"position": "sincos1d", "pool": "tok"}},
    "first, gap": {"image": {"pool": "first", "position": "learned"}, "text": {"pool": "gap"}},
    "map, linear, no head": {"image": {"pool": "map", "patch": "linear", "embed": None}, "text": {"embed": None}},
    "exact": {"blocks": {"gelu": "exact", "norm_eps": 1e-5}},
}


def leaves_of(model):
    """All leaves by path, layers by their layer's path, computed positions included."""
    found = {}
    for path, leaf in leaves_by_path(model).items():
        depth = stacked_depth(path, leaf)
        names = [path] if depth is None else [layer_path(path, i) for i in range(depth)]
        values = [leaf] if depth is None else leaf
        found |= {name: np.asarray(value, np.float64) for name, value in zip(names, values, strict=True)}
    for name, tower in (("image", model.image), ("text", model.text)):
        found[f"{name}/position"] = np.asarray(tower._positions(jnp.float32), np.float64)
    return found


def run(model, tower, x):
    steps, options = replay(model.config, tower)
    leaves, state, seen = leaves_of(model), {"input": x}, {}
    for step in steps:
        used = {name: leaves[path] for name, path in step.leaves.items()}
        state[step.writes] = seen[step.name] = run_step(step, used, options, state)
    return seen


@pytest.mark.parametrize("case", CASES)
def test_the_replay_of_the_image_tower_agrees_with_the_tower(case):
    model = random_model(tiny_clip_config(**CASES[case]))
    images = np.random.default_rng(1).normal(size=(2, *model.config.image.image_size, 3)).astype(np.float32)
    trace = jax.jit(jax.vmap(model.image.trace))(jnp.asarray(images))
    seen = run(model, "image", patches_of(images, model.config.image))
    check(seen, trace, "image")
    np.testing.assert_allclose(seen["image/patch"], trace.stem, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(seen["image/+position"], trace.with_position, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(
        seen["image/unit_norm"], jax.jit(jax.vmap(model.encode_image))(jnp.asarray(images)), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("case", CASES)
def test_the_replay_of_the_text_tower_agrees_with_the_tower(case):
    model = random_model(tiny_clip_config(**CASES[case]))
    texts = np.random.default_rng(1).integers(0, 64, (2, model.config.text.length))
    trace = jax.jit(jax.vmap(model.text.trace))(jnp.asarray(texts))
    seen = run(model, "text", texts.astype(np.float64))
    check(seen, trace, "text")
    np.testing.assert_allclose(seen["text/token"], trace.vectors, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(seen["text/norm"], trace.norm, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(
        seen["text/unit_norm"], jax.jit(jax.vmap(model.encode_text))(jnp.asarray(texts)), rtol=0, atol=1e-5
    )


def check(seen, trace, tower):
    for i in range(2):
        ours = {
            "attn/out": trace.blocks.attention[:, i],
            "+attention": trace.blocks.after_attention[:, i],
            "mlp/fc_out": trace.blocks.mlp[:, i],
            "+mlp": trace.blocks.after_mlp[:, i],
        }
        for name, values in ours.items():
            np.testing.assert_allclose(seen[f"{tower}/blocks/{i}/{name}"], values, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(seen[f"{tower}/pool"], trace.head_input, rtol=1e-4, atol=2e-5)
    if f"{tower}/head" in seen:
        np.testing.assert_allclose(seen[f"{tower}/head"], trace.embedding, rtol=1e-4, atol=2e-5)


def options_of(model, tower, **changes):
    return dataclasses.replace(replay(model.config, tower)[1], **changes)


def test_a_causal_replay_hides_later_tokens():
    model = random_model(tiny_clip_config())
    steps, _ = replay(model.config, "text")
    (step,) = [step for step in steps if step.name == "text/blocks/0/attention"]
    rng = np.random.default_rng(0)
    state = {name: rng.normal(size=(1, 8, 32)) for name in ("q", "k", "v")}
    before = run_step(step, {}, options_of(model, "text", is_causal=True), state)
    later = {name: x + (np.arange(8) > 3)[:, None] * rng.normal(size=x.shape) for name, x in state.items()}
    after = run_step(step, {}, options_of(model, "text", is_causal=True), later)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-3
    np.testing.assert_array_equal(before[:, 0], state["v"][:, 0])
