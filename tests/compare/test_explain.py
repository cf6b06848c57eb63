"""The search for causes on one step at a time: each planted mistake is found, pairs too, and none is invented."""

from dataclasses import replace

import numpy as np
import pytest
from support.tiny_models import tiny_clip_config

from clipa_eqx.models.embed import sincos_1d, sincos_2d
from conversion.compare import causes, position_changes
from conversion.compare.causes import StepOfTwo, round_to
from conversion.compare.explain import explain, leaves_of
from conversion.compare.replay import replay, run_step

CONFIG = tiny_clip_config(blocks={"width": 16, "mlp_dim": 32})
GRID, WIDTH = (2, 2), 16
SHAPES = {
    "image/patch": ((1, 4, 192), {"weight": (WIDTH, 192)}),
    "image/+position": ((1, 5, WIDTH), {}),
    "image/blocks/0/norm1": ((1, 5, WIDTH), {"weight": (WIDTH,), "bias": (WIDTH,)}),
    "image/blocks/0/attn/q": ((1, 5, WIDTH), {"weight": (WIDTH, WIDTH), "bias": (WIDTH,)}),
    "image/blocks/0/attn/out": ((1, 5, WIDTH), {"weight": (WIDTH, WIDTH), "bias": (WIDTH,)}),
    "image/blocks/0/attention": ((1, 5, WIDTH), {}),
    "image/blocks/0/mlp/gelu": ((1, 5, 32), {}),
    "image/pool": ((1, 5, WIDTH), {"weight": (WIDTH,), "bias": (WIDTH,)}),
    "image/head": ((1, WIDTH), {"weight": (WIDTH, WIDTH)}),
    "text/+position": ((3, 8, WIDTH), {}),
}
TABLES = {
    "image/+position": np.concatenate([np.zeros((1, WIDTH)), sincos_2d(*GRID, WIDTH)]).astype(np.float64),
    "text/+position": sincos_1d(8, WIDTH).astype(np.float64),
}


def pair_of(name, leaves=None, others=None, **options):
    """A step of A with random float32 inputs and leaves; B has the given other leaves and options."""
    steps, own = replay(CONFIG, "image" if name.startswith("image") else "text")
    step = next(one for one in steps if one.name == name)
    shape, kinds = SHAPES[name]

    def values(path, shape):
        seed = list(path.encode())
        return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(np.float64)

    mine = {kind: values(f"{name}/{kind}", one) for kind, one in kinds.items()}
    if name in TABLES:
        mine["table"] = TABLES[name]
    mine |= leaves or {}

    def read_a(path):
        base = name.rsplit("/", 1)[0]
        return values(path, (WIDTH, WIDTH)[: 2 if path.endswith("weight") else 1]) if path.startswith(base) else None

    return StepOfTwo(
        step=step,
        state={read: values(f"state/{read}", shape) for read in step.reads},
        leaves_a=mine,
        leaves_b={kind: value for kind, value in (mine | (others or {})).items() if value is not None},
        options_a=own,
        options_b=replace(own, **options),
        read_a=read_a,
        grid=GRID if name.startswith("image") else None,
    )


def found(pair, **options):
    a = run_step(pair.step, pair.leaves_a, pair.options_a, pair.state)
    b = run_step(pair.step, pair.leaves_b, pair.options_b, pair.state)
    assert not np.array_equal(a, b), "the planted mistake changes nothing"
    explanation = explain(pair, a, b, **options)
    return None if explanation is None else [cause for cause, _ in explanation.causes]


def weights(name, change, kind="weight"):
    """Leaves of B: A's with one of them changed."""
    return {kind: change(pair_of(name).leaves_a[kind])}


def heads_apart(weight):
    return weight.reshape(2, 8, WIDTH).swapaxes(0, 1).reshape(weight.shape)


def blue_first(weight):
    return weight.reshape(-1, 3)[:, ::-1].reshape(weight.shape)


def y_first(table):
    return np.roll(table, WIDTH // 2, axis=1)


K = "image/blocks/0/attn/k"
Q, OUT, STEM, POOL = "image/blocks/0/attn/q", "image/blocks/0/attn/out", "image/patch", "image/pool"
ATTENTION, GELU, NORM = "image/blocks/0/attention", "image/blocks/0/mlp/gelu", "image/blocks/0/norm1"
IMAGE, TEXT = "image/+position", "text/+position"
PLANTED = {
    "epsilon": (NORM, None, {"eps": 1e-3}, causes.EPS),
    "gelu": (GELU, None, {"gelu": "quick"}, causes.GELU),
    "heads": (ATTENTION, None, {"heads": 4}, causes.HEADS),
    "mask": (ATTENTION, None, {"is_causal": True}, causes.CAUSAL),
    "place of the norm": (POOL, None, {"pool_norm": "before"}, causes.NORM_PLACE),
    "no norm": (POOL, None, {"pool_norm": "none"}, causes.NORM_PLACE),
    "class token": (POOL, None, {"has_class_in_mean": True}, causes.CLASS_IN_MEAN),
    "kind of pooling": (POOL, None, {"pool": "last"}, causes.POOL),
    "transposed": (Q, lambda: weights(Q, np.transpose), {}, causes.TRANSPOSED),
    "transposed head": ("image/head", lambda: weights("image/head", np.transpose), {}, causes.TRANSPOSED),
    "interleaved": (Q, lambda: weights(Q, heads_apart), {}, causes.INTERLEAVED),
    "interleaved out": (OUT, lambda: weights(OUT, lambda w: heads_apart(w.T).T), {}, causes.INTERLEAVED),
    "q is k": (Q, lambda: {kind: pair_of(Q).read_a(f"{K}/{kind}") for kind in BOTH}, {}, causes.PERMUTED),
    "no bias": (Q, lambda: {"bias": None}, {}, causes.NO_BIAS),
    "zero bias": (NORM, lambda: weights(NORM, np.zeros_like, "bias"), {}, causes.NO_BIAS),
    "float16": (Q, lambda: {kind: round_to(pair_of(Q).leaves_a[kind], "float16") for kind in BOTH}, {}, causes.ROUNDED),
    "blue first": (STEM, lambda: weights(STEM, blue_first), {}, causes.PATCH_ORDER),
    "no positions": (IMAGE, lambda: weights(IMAGE, np.zeros_like, "table"), {}, causes.NO_POSITION),
    "x and y": (IMAGE, lambda: weights(IMAGE, y_first, "table"), {}, causes.SWAPPED_AXES),
    "denominator": (IMAGE, lambda: {"table": position_changes.sincos_2d(GRID, WIDTH, 0)}, {}, causes.DENOMINATOR),
    "denominator of text": (TEXT, lambda: {"table": position_changes.sincos_1d(8, WIDTH, 0)}, {}, causes.DENOMINATOR),
}  # fmt: skip
BOTH = ("weight", "bias")


@pytest.mark.parametrize("case", PLANTED)
def test_one_planted_mistake_is_the_only_cause(case):
    name, others, options, cause = PLANTED[case]
    assert found(pair_of(name, others=others() if others else None, **options)) == [cause]


def test_two_mistakes_are_found_together():
    pair = pair_of(POOL, eps=1e-2, pool_norm="before")
    assert sorted(found(pair) or []) == sorted([causes.EPS, causes.NORM_PLACE])
    rounded = round_to(pair_of(Q).leaves_a["weight"], "bfloat16").T
    assert (
        found(pair_of(Q, others={"weight": rounded})) is None
    )  # rounding and transposing are one change each, in turn


@pytest.mark.parametrize("name", [Q, STEM, POOL, IMAGE, TEXT, NORM])
def test_no_cause_is_invented_for_unrelated_leaves(name):
    shapes = {kind: value.shape for kind, value in pair_of(name).leaves_a.items()}
    rng = np.random.default_rng(7)
    assert found(pair_of(name, others={kind: rng.normal(size=shape) for kind, shape in shapes.items()})) is None


def test_three_mistakes_are_more_than_are_tried():
    pair = pair_of(POOL, others={"bias": np.zeros(WIDTH)}, eps=1e-1, pool_norm="before", has_class_in_mean=True)
    assert found(pair) is None


@pytest.mark.parametrize("first", [causes.ROUNDED, causes.NO_BIAS])
def test_of_two_causes_that_fit_the_one_found_elsewhere_is_reported(first):
    """A bias that float16 rounds to zero may be rounded or missing."""
    leaves = {"weight": np.eye(WIDTH) + np.tri(WIDTH), "bias": np.full(WIDTH, 1e-8)}
    pair = pair_of(Q, leaves=leaves, others={"bias": np.zeros(WIDTH)})
    assert found(pair, first=(first,)) == [first]


def test_a_learned_table_is_never_explained_by_a_formula():
    learned = np.random.default_rng(0).normal(size=(5, WIDTH))
    pair = pair_of(IMAGE, leaves={"table": learned}, others={"table": position_changes.sincos_2d(GRID, WIDTH, 0)})
    assert found(pair) is None


@pytest.mark.parametrize(("grid", "dim"), [((1, 1), 8), ((2, 3), 16), ((4, 2), 32)])
def test_the_formula_with_q_minus_1_is_that_of_the_models(grid, dim):
    table = position_changes.sincos_2d(grid, dim, 1)
    np.testing.assert_allclose(table[1:], sincos_2d(*grid, dim), atol=1e-6)
    assert not table[0].any()
    np.testing.assert_allclose(position_changes.sincos_1d(7, dim, 1), sincos_1d(7, dim), atol=1e-6)


def test_leaves_that_a_side_lacks_are_left_out_except_the_bias_of_a_norm():
    held = {"image/blocks/0/norm1/weight": np.ones(3), "image/blocks/0/attn/q/weight": np.ones((3, 3))}
    steps = {step.name: step for step in replay(CONFIG, "image")[0]}
    made = leaves_of(steps[NORM], held.get)
    assert made.keys() == {"weight", "bias"}
    assert not made["bias"].any()
    assert leaves_of(steps[Q], held.get).keys() == {"weight"}
    assert leaves_of(steps[POOL], held.get) == {}


def test_too_large_values_become_infinite_when_rounded():
    assert round_to(np.array([1.0, 1e6]), "float16").tolist() == [1.0, np.inf]
    assert round_to(np.array([1.0, 1e6]), "bfloat16").tolist() == [1.0, 999424.0]
