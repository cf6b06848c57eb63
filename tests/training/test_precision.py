"""The dtype of every kind of value in the step, read from its jaxpr and from the compiled program."""

import json
import re

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from support.paths import ROOT
from support.step_text import compiled_reductions, step_jaxpr
from support.tiny_models import tiny_clip_config

from clipa_eqx.errors import ConfigError
from clipa_eqx.json_config import from_json, to_json
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.precision import Precision
from clipa_eqx.training.gradients import batch_loss

BATCH = 24  # no other size of the tiny models
MODELS = {
    "plain": tiny_clip_config(blocks={"remat": "full", "drop_path": 0.1, "dropout": 0.1}),
    "masked": tiny_clip_config(image={"pool": "tok", "mask_ratio": 0.5}, text={"position": "sincos1d", "pool": "tok"}),
    "map": tiny_clip_config(image={"pool": "map", "patch": "linear", "position": "learned"}, text={"pool": "gap"}),
}
FLOAT32, BFLOAT16 = Precision(), Precision(compute="bfloat16")


def gradient_equations(config, precision):
    """All equations of the gradient function of the loss, those of inner programs included, and its results."""
    images = jax.ShapeDtypeStruct((BATCH, *config.image.image_size, 3), jnp.uint8)
    tokens = jax.ShapeDtypeStruct((BATCH, config.text.length), jnp.int32)

    def loss(model, images, tokens, key):
        return batch_loss(model, images, tokens, key=key, precision=precision).loss

    key = jax.eval_shape(lambda: jr.key(0))
    traced = jax.make_jaxpr(jax.grad(loss))(abstract_clip(config), images, tokens, key)
    return list(equations(traced.jaxpr)), traced.out_avals


def equations(jaxpr):
    return (equation for equation, _ in scoped(jaxpr))


def scoped(jaxpr, outer=""):
    """Equations with their scopes, which inside of a loop are relative to that of the loop."""
    for equation in jaxpr.eqns:
        scope = f"{outer}/{equation.source_info.name_stack}"
        yield equation, scope
        for value in equation.params.values():
            for one in value if isinstance(value, tuple | list) else (value,):
                inside = getattr(one, "jaxpr", one)
                if hasattr(inside, "eqns"):
                    yield from scoped(inside, scope)


def is_batched(variable):
    return BATCH in variable.aval.shape


def is_float(variable):
    return jnp.issubdtype(variable.aval.dtype, jnp.floating)


def rounded_sums(found):
    """Equations that sum over the batch into bfloat16, or widen a sum or parameter that was bfloat16."""
    return [
        str(e.primitive)
        for e in found
        if e.outvars
        and is_float(e.outvars[0])
        and not any(map(is_batched, e.outvars))
        and not any(hasattr(getattr(v, "jaxpr", v), "eqns") for v in e.params.values())
        and (
            (any(map(is_batched, e.invars)) and e.outvars[0].aval.dtype == jnp.bfloat16)
            or (
                e.primitive.name == "convert_element_type"
                and e.invars[0].aval.dtype == jnp.bfloat16
                and e.outvars[0].aval.dtype == jnp.float32
            )
        )
    ]


@pytest.mark.parametrize("name", MODELS)
def test_no_gradient_is_bfloat16_after_the_sum_over_the_batch(name):
    found, results = gradient_equations(MODELS[name], BFLOAT16)
    assert {aval.dtype for aval in results} == {jnp.dtype("float32")}
    assert rounded_sums(found) == []
    # The walker sees the sums of a run that allows them.
    former, _ = gradient_equations(MODELS[name], Precision(compute="bfloat16", gradients="bfloat16"))
    assert len(rounded_sums(former)) > 10


@pytest.mark.parametrize("name", MODELS)
def test_every_float32_product_of_the_towers_has_all_bits(name):
    found, _ = gradient_equations(MODELS[name], FLOAT32)
    products = [e for e in found if e.primitive.name == "dot_general"]
    of_towers = [e for e in products if (BATCH, BATCH) not in {v.aval.shape for v in (*e.invars, *e.outvars)}]
    assert len(of_towers) > 30
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert [e for e in of_towers if e.params["precision"] != highest] == []


def documented():
    """Rows of the table in ``docs/precision.md``: kind, dtype with float32 towers, dtype with bfloat16 towers."""
    text = (ROOT / "docs" / "precision.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+?) \| (float32|bfloat16) \| (float32|bfloat16) \|", text, flags=re.MULTILINE)
    return {kind: dtypes for kind, *dtypes in rows}


def traced(precision):
    """The same table, read from the jaxpr of the step of a tiny model."""
    step, state, names = step_jaxpr(MODELS["masked"], precision, batch=BATCH)
    scopes = list(scoped(step))
    found = [e for e, _ in scopes]

    def dtypes(values):
        kinds = {str(v.aval.dtype) for v in values if is_float(v)}
        assert len(kinds) == 1, kinds
        return kinds.pop()

    def forward(primitive, within=""):
        return [e for e, at in scopes if e.primitive.name == primitive and within in at and "transpose" not in at]

    def outputs(primitive, within):
        return [e.outvars[0] for e in forward(primitive, within)]

    def carries(*, backward):
        scans = [e for e in found if e.primitive.name == "scan" and e.params["reverse"] == backward]
        assert len(scans) == 2
        for e in scans:
            if "ft_in" in e.params:  # since JAX 0.12
                first, count = (len(part.vals) for part in e.params["ft_in"].unpack()[:2])
            else:
                first, count = e.params["num_consts"], e.params["num_carry"]
            yield from (v for v in e.invars[first : first + count] if is_batched(v))

    logits = [e for e in forward("dot_general") if e.outvars[0].aval.shape == (BATCH, BATCH)]
    weights = [v for e in forward("dot_general", "mlp") for v in e.invars]
    assert logits
    return {
        "parameters": dtypes(names.parameters),
        "moments of the optimizer": dtypes(names.moments),
        "operands of the towers' matrix products": dtypes(weights),
        "residual stream": dtypes(carries(backward=False)),
        "statistics of LayerNorm": dtypes(outputs("rsqrt", "layer_norm")),
        "softmax of the attention": dtypes(outputs("exp", "attention")),
        "GELU": dtypes(outputs("tanh", "mlp")),
        "embeddings": dtypes(v for e in logits for v in e.invars),
        "logits": dtypes(e.outvars[0] for e in logits),
        "gradients of activations": dtypes(carries(backward=True)),
        "gradients of parameters, summed": dtypes(
            e.outvars[0]
            for e, at in scopes
            if e.primitive.name in ("dot_general", "reduce_sum", "scatter-add")
            and "transpose" in at
            and any(map(is_batched, e.invars))
            and not is_batched(e.outvars[0])
        ),
        "loss and metrics": dtypes(names.metrics),
        "updated parameters": dtypes(state),
    }


def test_the_table_of_the_manual_has_the_dtypes_of_the_step():
    float32, bfloat16 = traced(FLOAT32), traced(BFLOAT16)
    assert documented() == {kind: [float32[kind], bfloat16[kind]] for kind in float32}


@pytest.mark.parametrize("sizes", [(1, 8), pytest.param((8, 1), marks=pytest.mark.slow)], ids=str)
def test_gradients_are_reduced_over_the_devices_in_float32(sizes):
    reductions = compiled_reductions(BFLOAT16, *sizes)
    # A CPU adds 16-bit values as float32, in reductions that it calls promoted.
    assert reductions
    assert [line for line in reductions if "promoted" in line or "bf16" in line] == []


@pytest.mark.slow
def test_gradients_in_bfloat16_are_reduced_in_bfloat16():
    rounded = compiled_reductions(Precision(compute="bfloat16", gradients="bfloat16"), 8, 1)
    assert [line for line in rounded if "promoted" in line or "bf16" in line]


def test_runs_of_earlier_versions_keep_the_dtype_of_their_gradients():
    for compute in ("float32", "bfloat16"):
        assert from_json(Precision, {"compute": compute}) == Precision(compute=compute, gradients=compute)
    recorded = json.loads(json.dumps(to_json(BFLOAT16)))
    assert recorded == {"compute": "bfloat16", "gradients": "float32"}
    assert from_json(Precision, recorded) == BFLOAT16


def test_bfloat16_gradients_of_float32_towers_are_refused():
    with pytest.raises(ConfigError, match=r'precision.gradients is "bfloat16", but precision.compute is "float32"'):
        Precision(gradients="bfloat16")
