"""Moments move with their leaves: after each operation, each moment is what the operation did to its leaf."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from support.random_clips import random_clip
from support.tiny_models import PIECES, tiny_clip_config

from clipa_eqx import surgery
from clipa_eqx.durations import RunLength
from clipa_eqx.errors import ConfigError
from clipa_eqx.optim import OptimConfig, make_optimizer
from clipa_eqx.trees import leaf_paths, leaves_by_path

pytestmark = pytest.mark.usefixtures("quick_compile")

RUN, OPTIM = RunLength(total_steps=9), OptimConfig(peak_lr=1e-2)
LEARNED = {"image": {"position": "learned"}}
KEY = jr.key(4)
MOMENTS = ("mu", "nu")


def optimizer_of(model, optim=OPTIM):
    return make_optimizer(optim, model, RUN)


@functools.cache
def trained(optim=OPTIM):
    """A model and its optimizer state after two steps, with random gradients."""
    model = random_clip(**LEARNED)
    optimizer = optimizer_of(model, optim)
    return steps(model, optimizer, optimizer.init(model), [random_clip(seed, **LEARNED) for seed in (8, 9)])


def steps(model, optimizer, state, gradients):
    for one in gradients:
        updates, state = eqx.filter_jit(optimizer.update)(one, state, model)
        model = optax.apply_updates(model, updates)
    return model, state


def moments(state):
    """Both moments of each leaf by its path."""
    found = {kind: {} for kind in MOMENTS}
    for name, leaf in leaves_by_path(state).items():
        for kind in MOMENTS:
            if f"/{kind}/" in name:
                found[kind][name.split(f"/{kind}/")[1]] = leaf
    return found


def lines(values, new):
    """Linear interpolation of rows between half-pixel centers with clamped edges, for growing only."""
    at = (np.arange(new) + 0.5) * len(values) / new - 0.5
    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    rows = [np.interp(at, np.arange(len(flat)), column) for column in flat.T]
    return np.stack(rows, axis=1).reshape(new, *np.shape(values)[1:])


def grid(position, old, new):
    rows = lines(np.asarray(position)[1:].reshape(*old, -1), new[0])
    return np.concatenate([position[:1], lines(rows.swapaxes(0, 1), new[1]).swapaxes(0, 1).reshape(-1, 32)])


def kernel(weight):
    pixels = np.moveaxis(np.asarray(weight).reshape(32, 8, 8, 3), 0, -1)
    grown = lines(lines(pixels, 16).swapaxes(0, 1), 8).swapaxes(0, 1)
    return np.moveaxis(grown, -1, 0).reshape(32, -1)


def vocabulary(table):
    return np.concatenate([np.asarray(table)[5:9], np.zeros((2, 32))])


def zero(_):
    return 0.0


def half(leaf):
    return np.asarray(leaf) * np.array([0.0, 1.0]).reshape(-1, *(1,) * (leaf.ndim - 1))


def adopted(model):
    target = tiny_clip_config(text={"length": 16}, **LEARNED)
    fresh = random_clip(5, text={"length": 16}, **LEARNED)
    keep = ("image/blocks/0/attn/q/weight", "text/head/weight", "image/class_token")
    return surgery.adopt(model, target, fresh=fresh, resize_text=True, keep_initial=keep)


OPERATIONS = {
    "resize_text": (lambda m: surgery.resize_text(m, length=16), {"text/position": lambda p: lines(p, 16)}),
    "resize_text, first rows": (
        lambda m: surgery.resize_text(m, length=9, rows="first"),
        {"text/position": lambda p: np.concatenate([p, p[-1:]])},
    ),
    "resize_image": (
        lambda m: surgery.resize_image(m, image_size=(24, 32)),
        {"image/position": lambda p: grid(p, (2, 2), (3, 4))},
    ),
    "resize_patch": (
        lambda m: surgery.resize_patch(m, patch_size=(16, 8), image_size=(32, 16)),
        {"image/patch/weight": kernel},
    ),
    "swap_vocabulary": (
        lambda m: surgery.swap_vocabulary(m, old=PIECES, new=[*PIECES[5:9], "new", "##er"], key=KEY),
        {"text/token/weight": vocabulary},
    ),
    "swap_head": (
        lambda m: surgery.swap_head(m, embed=5, key=KEY),
        {"image/head/weight": zero, "text/head/weight": zero},
    ),
    "prune_depth": (
        lambda m: surgery.prune_depth(m, text=(1,)),
        {path: lambda leaf: leaf[1:] for path in leaf_paths(random_clip(**LEARNED)) if path.startswith("text/blocks/")},
    ),
    "interpolate": (lambda m: surgery.interpolate(m, random_clip(7, **LEARNED), alpha=0.25), {}),
    "average": (lambda m: surgery.average([m, random_clip(7, **LEARNED)]), {}),
    "adopt": (
        adopted,
        {
            "text/position": lambda p: lines(p, 16),
            "image/blocks/attn/q/weight": half,
            "text/head/weight": zero,
            "image/class_token": zero,
        },
    ),
    "with_pixel_statistics": (
        lambda m: surgery.with_pixel_statistics(m, mean=(0.5,) * 3, std=(0.25,) * 3),
        {"image/patch/weight": zero, "image/patch/bias": zero},
    ),
    "lora": (
        lambda m: surgery.lora(m, rank=2, alpha=2.0, targets=("text/head/weight",), key=KEY),
        {"text/head/lora_down": zero, "text/head/lora_up": zero},
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_moment_is_what_the_operation_did_to_its_leaf(name):
    operation, moved = OPERATIONS[name]
    model, state = trained()
    result = operation(model)
    optimizer = optimizer_of(result.model)
    new, changes = surgery.with_optimizer(model, result, state, optimizer)
    assert_fits(new, optimizer, result.model)
    for kind in MOMENTS:
        before, after = moments(state)[kind], moments(new)[kind]
        assert set(after) == set(leaf_paths(result.model))
        for path, found in after.items():
            if path not in moved:
                assert found is before[path], path
                continue
            expected = moved[path](before.get(path))
            np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-5, atol=1e-9)
            if kind == "nu":
                assert np.asarray(found).min() >= 0
                assert longest(moments(new), path) <= longest(moments(state), path) * (1 + 1e-5)
    assert {line.split(": ")[0] for line in changes} == set(moved)


def longest(both, path):
    if path not in both["mu"]:
        return 0.0
    mu, nu = (np.asarray(both[kind][path], np.float64) for kind in MOMENTS)
    return (np.abs(mu) / np.sqrt(nu + 1e-30)).max()


def assert_fits(state, optimizer, model):
    wanted = jax.eval_shape(optimizer.init, model)
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    for found, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert (found.shape, found.dtype) == (leaf.shape, leaf.dtype)


def test_counts_stay_and_a_step_of_the_real_optimizer_runs():
    model, state = trained()
    result = surgery.resize_text(model, length=16)
    optimizer = optimizer_of(result.model)
    moved = surgery.with_optimizer(model, result, state, optimizer).state
    gradients = jax.tree.map(jnp.ones_like, result.model)
    after, stepped = steps(result.model, optimizer, moved, [gradients])
    counts = {
        name: int(leaf)
        for name, leaf in leaves_by_path(stepped).items()
        if leaf.ndim == 0 and "/mu/" not in name and "/nu/" not in name
    }
    assert set(counts.values()) == {3}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    assert not np.array_equal(after.text.position, result.model.text.position)
    mu = moments(stepped)["mu"]["text/position"]
    np.testing.assert_allclose(mu, 0.9 * moments(moved)["mu"]["text/position"] + 0.1, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_training_continues_after_each_operation(name):
    model, state = trained()
    result = OPERATIONS[name][0](model)
    optimizer = optimizer_of(result.model)
    state = surgery.with_optimizer(model, result, state, optimizer).state
    after, _ = steps(result.model, optimizer, state, [jax.tree.map(jnp.ones_like, result.model)])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_frozen_leaves_lose_their_moments_and_newly_trained_ones_start_at_zero():
    model, state = trained()
    result = surgery.with_config(model, model.config)
    locked = surgery.freeze(OPTIM, model, "image/.*")
    half_state, changes = surgery.with_optimizer(model, result, state, optimizer_of(model, locked))
    assert_fits(half_state, optimizer_of(model, locked), model)
    assert not any(path.startswith("image/") for path in moments(half_state)["nu"])
    assert changes == tuple(f"{p}: moments removed" for p in sorted(leaf_paths(model)) if p.startswith("image/"))
    back, changes = surgery.with_optimizer(model, result, half_state, optimizer_of(model))
    assert_fits(back, optimizer_of(model), model)
    assert not np.any(moments(back)["nu"]["image/class_token"])
    assert moments(back)["mu"]["text/position"] is moments(state)["mu"]["text/position"]
    assert changes == tuple(f"{p}: moments start at zero" for p in sorted(leaf_paths(model)) if p.startswith("image/"))


def test_merged_factors_leave_and_the_weights_keep_their_moments():
    model, state = trained()
    result = OPERATIONS["lora"][0](model)
    state = surgery.with_optimizer(model, result, state, optimizer_of(result.model)).state
    merged = surgery.merge(result.model)
    plain, changes = surgery.with_optimizer(result.model, merged, state, optimizer_of(merged.model))
    assert_fits(plain, optimizer_of(model), model)
    assert moments(plain)["mu"]["text/head/weight"] is moments(state)["mu"]["text/head/weight"]
    assert changes == ("text/head/lora_down: moments removed", "text/head/lora_up: moments removed")


def test_moments_have_the_types_of_the_new_optimizer():
    model, state = trained()
    result = surgery.cast(model, "bfloat16")
    half_state, _ = surgery.with_optimizer(model, result, state, optimizer_of(result.model))
    assert_fits(half_state, optimizer_of(result.model), result.model)
    for path, found in moments(half_state)["nu"].items():
        np.testing.assert_allclose(found.astype("f4"), moments(state)["nu"][path], rtol=2**-8, err_msg=path)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_tower_alone_takes_its_moments_along(tower):
    model, state = trained()
    result = surgery.take_tower(model, tower)
    optimizer = optimizer_of(result.tower)
    taken, changes = surgery.with_optimizer(model, result, state, optimizer)
    assert_fits(taken, optimizer, result.tower)
    for kind in MOMENTS:
        for path, found in moments(taken)[kind].items():
            assert found is moments(state)[kind][f"{tower}/{path}"]
    assert all(line.endswith("moments removed") and not line.startswith(tower) for line in changes)


def test_a_classifier_starts_with_the_moments_of_its_tower():
    model, state = trained()
    result = surgery.add_classifier(model, np.eye(3, 16, dtype=np.float32))
    optimizer = optimizer_of(result.model)
    moved, changes = surgery.with_optimizer(model, result, state, optimizer)
    assert_fits(moved, optimizer, result.model)
    assert moments(moved)["nu"]["image/position"] is moments(state)["nu"]["image/position"]
    assert not np.any(moments(moved)["mu"]["classifier/weight"])
    assert "text/position: moments removed" in changes


def test_what_does_not_belong_together_is_one_error():
    model, state = trained()
    result = surgery.resize_text(model, length=16)
    optimizer = optimizer_of(result.model)
    with pytest.raises(ConfigError, match=r"(?s)one operation at a time, .*image/class_token"):
        surgery.with_optimizer(random_clip(1, **LEARNED), result, state, optimizer)
    other = surgery.resize_text(random_clip(1, text={"length": 6}, **LEARNED), length=16)
    with pytest.raises(ConfigError, match="one operation at a time"):
        surgery.with_optimizer(model, other, state, optimizer)
    with pytest.raises(ConfigError, match=r"(?s)is of another kind.*unused: .*count"):
        surgery.with_optimizer(model, result, state, optax.sgd(0.1, momentum=0.9))
    with pytest.raises(ConfigError, match=r"(?s)missing: .*count"):
        surgery.with_optimizer(model, result, optax.sgd(0.1).init(model), optimizer)


@pytest.mark.parametrize(("b2", "first", "longest_step"), [(0.95, 0.45, 1.1), (0.999, 3.2, 6.6)])
def test_steps_of_leaves_whose_moments_start_at_zero_are_as_long_as_the_manual_says(b2, first, longest_step):
    adam = optax.scale_by_adam(b1=0.9, b2=b2)
    state = adam.init(jnp.zeros(()))._replace(count=jnp.asarray(100_000))
    lengths = []
    for _ in range(30):
        step, state = adam.update(jnp.asarray(3.0), state)
        lengths.append(float(step))
    assert round(lengths[0], 2 if first < 1 else 1) == first
    assert round(max(lengths), 1) == longest_step
