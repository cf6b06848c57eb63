"""LoRA: nothing changes at first, merged equals unmerged, and apart comes back what was there before."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.leaves import assert_bit_equal
from support.random_clips import TOKENS, gradient, outputs, random_clip

from clipa_eqx import surgery
from clipa_eqx.durations import RunLength
from clipa_eqx.errors import ConfigError
from clipa_eqx.optim import OptimConfig, make_optimizer
from clipa_eqx.schedules import Cosine
from clipa_eqx.trees import leaf_paths, leaves_by_path, map_with_path

ALL = (r".*/(attn/(q|k|v|out)|mlp/fc_(in|out)|head|patch)/weight",)
SOME = ("image/blocks/attn/(q|v)/weight", "text/head/weight")


def adapted(model, *, rank=4, alpha=8.0, targets=ALL):
    return surgery.lora(model, rank=rank, alpha=alpha, targets=targets, key=jr.key(3)).model


def trained(model, *, size=0.05):
    """The same model with random ``lora_up``, as after training."""

    def move(path, leaf):
        noise = np.random.default_rng(len(path)).normal(size=leaf.shape).astype(np.float32)
        return (size * jnp.asarray(noise)).astype(leaf.dtype) if path.endswith("/lora_up") else leaf

    return map_with_path(move, model)


@pytest.mark.parametrize(
    ("fields", "targets"),
    [
        ({}, ALL),
        pytest.param({}, SOME, marks=pytest.mark.slow),
        pytest.param({"image": {"pool": "map", "patch": "linear"}}, ALL, marks=pytest.mark.slow),
    ],
)
def test_at_initialization_nothing_changes_bit_for_bit(fields, targets):
    model = random_clip(**fields)
    with_factors, report = surgery.lora(model, rank=4, alpha=8.0, targets=targets, key=jr.key(3))
    for found, expected in zip(outputs(with_factors), outputs(model), strict=True):
        np.testing.assert_array_equal(found, expected)
    added = {leaf.path for leaf in report.leaves}
    assert added == set(leaf_paths(with_factors)) - set(leaf_paths(model))
    assert added
    assert all(leaf.before is None and leaf.path.endswith(("lora_up", "lora_down")) for leaf in report.leaves)
    assert_bit_equal(surgery.detach(with_factors)[0], model)


def test_every_layer_of_a_stack_has_its_own_factors():
    leaves = leaves_by_path(adapted(random_clip()))
    down = np.asarray(leaves["image/blocks/attn/q/lora_down"])
    assert down.shape == (2, 4, 32)
    assert leaves["image/blocks/mlp/fc_in/lora_up"].shape == (2, 64, 4)
    others = [down[0], down[1], *(leaves[f"image/blocks/attn/{name}/lora_down"][0] for name in ("k", "v", "out"))]
    assert len({np.asarray(one).tobytes() for one in others}) == 5
    assert 0.9 * 32**-0.5 < np.abs(down).max() <= 32**-0.5


def test_merged_equals_unmerged():
    check_merged(rank=4, alpha=8.0)


@pytest.mark.slow
@settings(deadline=None, max_examples=5)
@given(rank=st.integers(1, 6), alpha=st.floats(0.5, 16, width=32))
def test_merged_equals_unmerged_for_every_rank_and_alpha(rank, alpha):
    check_merged(rank=rank, alpha=alpha)


def check_merged(*, rank, alpha):
    model = random_clip()
    learned = trained(adapted(model, rank=rank, alpha=alpha), size=0.05 / alpha)
    merged, report = surgery.merge(learned)
    for found, expected, before in zip(outputs(merged), outputs(learned), outputs(model), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert np.abs(np.asarray(found) - before).max() > 1e-4
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    weights = {leaf.path for leaf in report.leaves if leaf.after is not None}
    assert weights == {path.removesuffix("lora_up") + "weight" for path in leaf_paths(learned) if "lora_up" in path}
    q, up, down = (leaves_by_path(learned)[f"image/blocks/attn/q/{one}"] for one in ("weight", "lora_up", "lora_down"))
    step = alpha / rank * np.asarray(up, np.float64) @ np.asarray(down, np.float64)
    np.testing.assert_allclose(leaves_by_path(merged)["image/blocks/attn/q/weight"], q + step, rtol=0, atol=1e-6)


def test_detached_factors_leave_the_model_bit_for_bit_and_attach_again():
    model = random_clip()
    learned = trained(adapted(model, alpha=6.0, targets=SOME))
    plain, adapters = surgery.detach(learned)
    assert_bit_equal(plain, model)
    assert set(adapters.factors) == {"image/blocks/attn/q", "image/blocks/attn/v", "text/head"}
    assert adapters.alpha == 6.0
    assert_bit_equal(surgery.attach(plain, adapters).model, learned)


def test_unmerging_restores_the_weights_to_rounding():
    learned = trained(adapted(random_clip()))
    adapters = surgery.detach(learned)[1]
    back, report = surgery.unmerge(surgery.merge(learned).model, adapters)
    assert jax.tree.structure(back) == jax.tree.structure(learned)
    for path, leaf in leaves_by_path(back).items():
        expected = np.asarray(leaves_by_path(learned)[path])
        if path.endswith("/weight"):
            np.testing.assert_allclose(leaf, expected, rtol=0, atol=2e-7, err_msg=path)
        else:
            np.testing.assert_array_equal(leaf, expected, err_msg=path)
    assert "text/head/weight: LoRA subtracted and attached" in report.changes


def test_gradients_reach_both_factors_through_a_stack():
    found = leaves_by_path(gradient(trained(adapted(random_clip()))))
    factors = [path for path in found if path.endswith(("lora_up", "lora_down"))]
    assert len(factors) == 2 * (8 + 7)
    assert all(np.abs(np.asarray(found[path])).max() > 0 for path in factors)


def test_training_of_the_factors_alone_leaves_all_else_and_keeps_moments_of_the_factors_only():
    model = random_clip()
    learned = start = adapted(model)
    rules = ((surgery.LORA_FACTORS, Cosine()), (".*", None))
    optimizer = make_optimizer(OptimConfig(peak_lr=1e-2, schedules=rules), start, RunLength(total_steps=3))
    state = optimizer.init(start)
    factors = [leaf for path, leaf in leaves_by_path(start).items() if path.endswith(("lora_up", "lora_down"))]
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sorted(leaf.shape for leaf in moments) == sorted(leaf.shape for leaf in [*factors, *factors])

    @eqx.filter_jit
    def step(grads, state, learned):
        updates, state = optimizer.update(grads, state, learned)
        return optax.apply_updates(learned, updates), state

    for _ in range(3):
        learned, state = step(gradient(learned), state, learned)
    assert_bit_equal(surgery.detach(learned)[0], model)
    before = leaves_by_path(start)
    changed = {path for path, leaf in leaves_by_path(learned).items() if not np.array_equal(leaf, before[path])}
    assert {"text/head/lora_up", "image/blocks/attn/q/lora_up"} <= changed
    assert not any("lora" not in path for path in changed)


def test_factors_have_the_type_of_the_weight():
    with_factors = adapted(surgery.cast(random_clip(), "bfloat16").model)
    assert {leaf.dtype for leaf in jax.tree.leaves(with_factors)} == {jnp.dtype("bfloat16")}


@pytest.mark.slow
def test_at_initialization_nothing_changes_in_bfloat16():
    model = surgery.cast(random_clip(), "bfloat16").model
    with_factors = adapted(model)
    # Compiled, operations may be fused, which rounds bfloat16 elsewhere.
    with jax.disable_jit():
        np.testing.assert_array_equal(with_factors.encode_text(TOKENS), model.encode_text(TOKENS))
    for found, expected in zip(outputs(with_factors), outputs(model), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank 0"),
        ({"alpha": 0.0}, "alpha 0.0"),
        ({"targets": ()}, "targets is empty"),
        ({"targets": ("image/nothing",)}, "matches no leaf"),
        ({"targets": ("image/blocks/.*",)}, r"(?s)norm1/weight: not the weight.*attn/q/bias: not the weight"),
        ({"targets": ("image/blocks/1/attn/q/weight",)}, "image/blocks/attn/q/weight: some layers only"),
        ({"targets": ("text/token/weight",)}, "text/token/weight: not the weight of a linear layer"),
    ],
)
def test_requests_that_make_no_factors_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        adapted(random_clip(), **options)


def test_factors_that_do_not_fit_are_refused_with_all_problems():
    model = adapted(random_clip(), targets=SOME)
    plain, adapters = surgery.detach(model)
    with pytest.raises(ConfigError, match="text/head: has factors already"):
        surgery.attach(model, adapters)
    wide = {**adapters.factors, "image/blocks/attn/q": (jnp.zeros((2, 4, 9)), jnp.zeros((2, 32, 4)))}
    wide["image/other"] = adapters.factors["text/head"]
    with pytest.raises(ConfigError, match=r"(?s)attn/q: factors \(2, 4, 9\) and .*image/other: not a linear layer"):
        surgery.attach(plain, surgery.Adapters(factors=wide, alpha=1.0))
    with pytest.raises(ConfigError, match="there are no factors"):
        surgery.attach(plain, surgery.Adapters(factors={}, alpha=1.0))
    for change in (surgery.merge, surgery.detach):
        with pytest.raises(ConfigError, match="no LoRA factors"):
            change(plain)
