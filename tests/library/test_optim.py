"""Rules freeze, decay and slow down the leaves that they name; bad configs and schedules are refused with a reason."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipa_eqx.durations import Duration, RunLength, is_time
from clipa_eqx.errors import ConfigError
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig, abstract_clip
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig
from clipa_eqx.optim import (
    DEFAULT_DECAY,
    OptimConfig,
    cap_temperature,
    layer_decay_rules,
    learning_rates,
    make_optimizer,
    trained_leaves,
)
from clipa_eqx.schedules import Cosine, Polynomial, Rsqrt, Stair, make_multiplier
from clipa_eqx.trees import leaf_paths, leaves_by_path, match_by_path, stacked_depth

DEPTH = 3
CONSTANT = Polynomial(end_ratio=1.0)


def _params():
    def block(start):
        shape = (DEPTH, 2, 2)
        return {
            "attn": {
                "q": {"weight": jnp.arange(start, start + 12.0).reshape(shape) / 10, "bias": jnp.ones((DEPTH, 2))}
            },
            "norm1": {"weight": jnp.ones((DEPTH, 2))},
        }

    return {
        "image": {"patch": {"weight": jnp.ones((2, 3))}, "class_token": jnp.ones(2), "blocks": block(1.0)},
        "text": {"token": {"weight": jnp.ones((4, 2))}, "blocks": block(2.0), "head": {"weight": jnp.ones((2, 2))}},
        "log_temperature": jnp.asarray(2.0),
    }


def _grads(params, scale=1.0):
    return jax.tree.map(lambda p: scale * (0.1 + 0.01 * jnp.arange(p.size, dtype=p.dtype).reshape(p.shape)), params)


def _train(config, *, grads=None, steps=1, total_steps=10):
    params = _params()
    optimizer = make_optimizer(config, params, RunLength(total_steps=total_steps))
    state = optimizer.init(params)
    grads = _grads(params) if grads is None else grads

    @jax.jit
    def update(state, params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = update(state, params)
    return leaves_by_path(params), state


def _moved(config, **options):
    before, (after, _) = leaves_by_path(_params()), _train(config, **options)
    return {path: np.asarray(after[path] != value) for path, value in before.items()}


def test_default_rules_decay_the_matrices_of_layers_and_nothing_else():
    still = jax.tree.map(jnp.zeros_like, _params())
    config = OptimConfig(peak_lr=0.1, schedules=((".*", CONSTANT),))
    moved = {path for path, change in _moved(config, grads=still).items() if change.any()}
    blocks = {f"{tower}/blocks/attn/q/weight" for tower in ("image", "text")}
    assert moved == {"image/patch/weight", "text/head/weight", *blocks}


@pytest.mark.parametrize("image_pool", ["gap", "tok", "first", "map"])
@pytest.mark.parametrize("learned", [False, True], ids=["computed", "learned"])
def test_default_rules_cover_every_model_and_decay_its_matrices_except_tables(image_pool, learned):
    blocks = BlockConfig(width=8, depth=DEPTH, mlp_dim=16, heads=2)
    model = abstract_clip(
        CLIPConfig(
            image=VisionConfig(
                blocks=blocks,
                image_size=(8, 8),
                patch_size=(4, 4),
                patch="linear" if learned else "conv",
                position="learned" if learned else "sincos2d",
                pool=image_pool,
                embed=None if learned else 8,
            ),
            text=TextConfig(blocks=blocks, length=4, vocab=20, position="learned" if learned else "sincos1d", embed=8),
        )
    )
    make_optimizer(OptimConfig(peak_lr=1.0), model, RunLength(total_steps=5))
    decayed = {path for path, decay in match_by_path(DEFAULT_DECAY, model, what="decay").items() if decay == 1.0}
    matrices = {
        path for path, leaf in leaves_by_path(model).items() if leaf.ndim - (stacked_depth(path, leaf) is not None) == 2
    }
    tables = {path for path in matrices if "position" in path or "token" in path or "probe" in path}
    assert decayed == matrices - tables
    rules = (*layer_decay_rules(0.5, depth=DEPTH, tower="image"), *layer_decay_rules(0.5, depth=DEPTH, tower="text"))
    factors = match_by_path((*rules, (".*", 1.0)), model, what="lr_factors")
    stem = ("image/patch/", "image/class_token", "image/position", "text/token/", "text/position")
    for path, factor in factors.items():
        assert factor == ((0.125, 0.25, 0.5) if "/blocks/" in path else 0.0625 if path.startswith(stem) else 1.0), path


def test_decay_is_scaled_by_the_learning_rate_and_its_multiple():
    still = jax.tree.map(jnp.zeros_like, _params())
    config = OptimConfig(
        peak_lr=0.1, weight_decay=0.5, decay=(("log_temperature", 2.0), (".*", 0.0)), schedules=((".*", CONSTANT),)
    )
    after, _ = _train(config, grads=still)
    np.testing.assert_allclose(after["log_temperature"], 2.0 * (1 - 0.1 * 0.5 * 2.0), rtol=1e-6)


def test_frozen_leaves_have_no_moments_and_do_not_move():
    config = OptimConfig(peak_lr=0.1, schedules=(("text/.*", None), (".*", CONSTANT)))
    moved = _moved(config)
    assert all(change.any() == (not path.startswith("text/")) for path, change in moved.items())
    _, state = _train(config)
    assert not [path for path in leaf_paths(state) if "text/" in path]


def test_the_first_k_blocks_can_be_frozen():
    config = OptimConfig(peak_lr=0.1, schedules=(("image/blocks/[01]/.*", None), (".*", CONSTANT)))
    moved = _moved(config, steps=2)
    for path, change in moved.items():
        per_layer = change.reshape(DEPTH, -1).any(1) if "/blocks/" in path else change.any()
        expected = [False, False, True] if path.startswith("image/blocks/") else True
        np.testing.assert_array_equal(per_layer, expected, err_msg=path)


def test_frozen_layers_do_not_count_in_the_clipped_norm_even_if_infinite():
    params = _params()
    grads = _grads(params)
    frozen = (("image/blocks/[01]/.*", None), ("text/.*", None), (".*", CONSTANT))
    config = OptimConfig(peak_lr=0.1, clip_norm=0.01, schedules=frozen, eps=0.1)
    blocks = grads["image"]["blocks"]
    broken = {
        **grads,
        "text": jax.tree.map(lambda g: g * jnp.inf, grads["text"]),
        "image": {**grads["image"], "blocks": jax.tree.map(lambda g: g.at[:2].set(jnp.nan), blocks)},
    }
    expected, _ = _train(config, grads=grads)
    found, _ = _train(config, grads=broken)
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    unclipped, _ = _train(OptimConfig(peak_lr=0.1, schedules=frozen, eps=0.1), grads=grads)
    assert not np.array_equal(unclipped["image/class_token"], expected["image/class_token"])


def test_layer_decay_slows_early_layers_by_powers_of_the_factor():
    factors = (*layer_decay_rules(0.5, depth=DEPTH, tower="image"), (".*", 1.0))
    decided = match_by_path(factors, _params(), what="lr_factors")
    assert decided["image/blocks/attn/q/weight"] == (0.125, 0.25, 0.5)
    assert decided["image/patch/weight"] == decided["image/class_token"] == 0.0625
    assert decided["text/blocks/attn/q/weight"] == 1.0
    plain = OptimConfig(peak_lr=0.1, weight_decay=0.0, schedules=((".*", CONSTANT),))
    slowed = OptimConfig(peak_lr=0.1, weight_decay=0.0, schedules=((".*", CONSTANT),), lr_factors=factors)
    before, (full, _), (slow, _) = leaves_by_path(_params()), _train(plain), _train(slowed)
    for path in before:
        ratio = (slow[path] - before[path]) / (full[path] - before[path])
        factor = decided[path]
        expected = np.reshape(factor, (-1, *(1,) * (ratio.ndim - 1))) if isinstance(factor, tuple) else factor
        np.testing.assert_allclose(ratio, np.broadcast_to(expected, ratio.shape), rtol=1e-4, err_msg=path)


def test_layers_may_have_schedules_of_their_own():
    late = Polynomial(end_ratio=1.0, warmup=Duration(steps=5))
    config = OptimConfig(peak_lr=0.1, schedules=(("text/blocks/2/.*", late), (".*", CONSTANT)))
    first = _moved(config)["text/blocks/attn/q/weight"].reshape(DEPTH, -1).any(1)
    np.testing.assert_array_equal(first, [True, True, False])
    second = _moved(config, steps=2)["text/blocks/norm1/weight"].reshape(DEPTH, -1).any(1)
    np.testing.assert_array_equal(second, [True, True, True])


def test_bfloat16_moments_are_stored_rounded_and_summed_in_float32():
    config = OptimConfig(peak_lr=0.1, mu_dtype="bfloat16", schedules=((".*", CONSTANT),))
    _, state = _train(config, steps=3)
    adam = next(
        n for n in jax.tree.leaves(state, is_leaf=lambda n: hasattr(n, "mu")) if isinstance(n, optax.ScaleByAdamState)
    )
    moment, grads = np.float32(0), leaves_by_path(_grads(_params()))
    gradient = np.asarray(grads["log_temperature"])
    for _ in range(3):
        decayed = jnp.asarray(0.9 * np.float32(moment), jnp.bfloat16).astype(jnp.float32)
        moment = jnp.asarray(np.float32(0.1) * gradient + decayed, jnp.bfloat16).astype(jnp.float32)
    assert adam.mu["log_temperature"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(adam.mu["log_temperature"].astype(jnp.float32), moment)
    assert adam.nu["log_temperature"].dtype == jnp.float32


def test_the_number_of_updates_is_in_the_state():
    _, state = _train(OptimConfig(peak_lr=0.1), steps=4)
    assert [int(n) for path, n in leaves_by_path(state).items() if path.endswith("updates_done")] == [4]


def test_a_model_that_can_be_called_is_no_mask_function():
    class Model(eqx.Module):
        weight: jax.Array

        def __call__(self):
            raise AssertionError("called")

    params = {"head": Model(jnp.ones((2, 2)))}["head"]
    optimizer = make_optimizer(OptimConfig(peak_lr=0.1, decay=((".*", 1.0),)), params, RunLength(total_steps=5))
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert updates.weight.shape == (2, 2)


def test_logged_learning_rates_contain_the_peak_and_leave_out_frozen_patterns():
    warm = Cosine(warmup=Duration(steps=2))
    config = OptimConfig(peak_lr=0.4, schedules=(("image/.*", None), ("text/.*", warm), (".*", CONSTANT)))
    rates = jax.jit(functools.partial(learning_rates, config, run=RunLength(total_steps=10)))(jnp.asarray(1))
    assert rates.keys() == {"text/.*", ".*"}
    np.testing.assert_allclose([rates["text/.*"], rates[".*"]], [0.2, 0.4], rtol=1e-6)


def test_patterns_of_trained_leaves_may_overlap():
    config = OptimConfig(peak_lr=0.1)
    text, both = (trained_leaves(config, _params(), trainable=one) for one in (("text/.*",), ("text/.*", ".*/bias")))
    assert 0 < sum(jax.tree.leaves(text)) < sum(jax.tree.leaves(both)) < len(jax.tree.leaves(both))
    assert trained_leaves(config, _params(), trainable=(".*", "text/.*")) == trained_leaves(config, _params())


def test_the_temperature_is_capped_only_if_asked():
    params = _params()
    assert cap_temperature(params, None) is params
    capped = cap_temperature(params, 5.0)
    np.testing.assert_allclose(capped["log_temperature"], np.log(5.0), rtol=1e-6)
    np.testing.assert_array_equal(cap_temperature(params, 100.0)["log_temperature"], params["log_temperature"])
    with pytest.raises(ConfigError, match="no leaf 'log_temperature'"):
        cap_temperature({"head": jnp.ones(2)}, 5.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": ((".*/weight", 1.0),)}, r"optim.decay: no rule matches 'image/blocks/attn/q/bias'"),
        ({"lr_factors": (("imgae/.*", 2.0), (".*", 1.0))}, r"optim.lr_factors: 'imgae/\.\*' decides no leaf"),
        ({"schedules": (("text/.*", None),)}, r"optim.schedules: no rule matches .*'log_temperature'"),
        ({"schedules": ((".*", None),)}, "every leaf is frozen"),
        ({"schedules": ((".*", Cosine(warmup=Duration(steps=10))),)}, "warm-up of 10 steps .* run of 10 steps"),
        ({"schedules": ((".*", Cosine(warmup=Duration(samples=99))),)}, "needs a positive batch_size"),
    ],
)
def test_rules_and_schedules_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_optimizer(OptimConfig(peak_lr=0.1, **options), _params(), RunLength(total_steps=10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b1": 1.0}, r"b1=1.0 must be in \[0, 1\)"),
        ({"clip_norm": 0.0}, "clip_norm=0.0 must be above 0, or None"),
        ({"eps": 0.0, "max_temperature": -1.0}, "eps=0.0 must be above 0; max_temperature=-1.0"),
        ({"lr_factors": (("text/.*", 0.0),)}, r"lr_factors 'text/\.\*': 0.0 must be above 0 \(to freeze"),
        ({"decay": ((".*", -1.0),)}, "-1.0 must be at least 0"),
    ],
)
def test_numbers_outside_their_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        OptimConfig(peak_lr=0.1, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1, "epochs": 2.0}, "exactly one of"),
        ({}, "got none"),
        ({"samples": 0}, "must be positive"),
        ({"steps": -1}, "must be positive"),
        ({"fraction": 3.0}, "more than the complete run"),
    ],
)
def test_durations_without_one_sensible_unit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Duration(**options)


@pytest.mark.parametrize(
    ("make", "missing"),
    [
        (lambda: Duration(samples=5).to_steps(RunLength(total_steps=9, data_size=9)), "batch_size"),
        (lambda: Duration(epochs=1.0).to_steps(RunLength(total_steps=9, batch_size=9)), "data_size"),
        (lambda: RunLength.of(Duration(samples=5), data_size=9), "batch_size"),
        (lambda: RunLength.of(Duration(epochs=1.0), batch_size=9), "data_size"),
        (lambda: RunLength.of(Duration(epochs=1.0), batch_size=9, data_size=0), "data_size"),
        (lambda: RunLength.of(Duration(fraction=0.5), batch_size=9, data_size=9), "total_steps"),
    ],
)
def test_durations_name_the_size_they_lack(make, missing):
    with pytest.raises(ConfigError, match=f"needs a positive {missing}"):
        make()


@pytest.mark.parametrize("size", ["total_steps", "batch_size", "data_size"])
def test_the_sizes_of_a_run_are_positive(size):
    with pytest.raises(ConfigError, match=f"{size}=0 must be positive"):
        RunLength(**{"total_steps": 9, size: 0})


def test_epochs_are_counted_only_if_the_sizes_are_known():
    assert RunLength(total_steps=9, batch_size=4, data_size=10).epochs(5) == 2.0
    with pytest.raises(ConfigError, match="needs batch_size and data_size"):
        RunLength(total_steps=9, batch_size=4).epochs(5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: make_multiplier(Cosine(warmup=Duration(steps=7)), RunLength(total_steps=7)),
            "does not end before the run",
        ),
        (lambda: make_multiplier(Rsqrt(cooldown=Duration(steps=8)), RunLength(total_steps=7)), "longer than the run"),
        (lambda: make_multiplier(Cosine(reference_batch_size=256), RunLength(total_steps=7)), "needs batch_size"),
        (lambda: Stair(steps=(5, 3), factors=(0.5, 0.1)), "must increase"),
        (lambda: Rsqrt(timescale_steps=0), "timescale_steps=0 must be positive"),
        (lambda: Cosine(reference_batch_size=0), "reference_batch_size=0 must be positive"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_schedules_without_ramps_start_at_one():
    schedules = (Cosine(), Polynomial(), Rsqrt(), Stair(steps=(3,), factors=(0.1,)))
    assert [float(make_multiplier(schedule, RunLength(total_steps=9))(0)) for schedule in schedules] == [1.0] * 4


def test_work_without_a_period_is_never_due():
    assert not any(is_time(step, every_steps=every, total_steps=3) for step in range(4) for every in (None, 0))
    with pytest.raises(ConfigError, match="every_steps=-1"):
        is_time(1, every_steps=-1, total_steps=3)
