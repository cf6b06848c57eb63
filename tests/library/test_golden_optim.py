"""Schedules, durations, rules and the optimizer's updates equal the reference's.

The parameters are recorded under the reference's names. Here each becomes a leaf under our path, with the blocks of a
tower stacked, and the reference's patterns are rewritten for our paths; shapes stay, as every update is elementwise.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import goldens

from clipa_eqx.durations import Duration, RunLength, is_time
from clipa_eqx.errors import ConfigError
from clipa_eqx.optim import OptimConfig, layer_decay_rules, learning_rates, make_optimizer
from clipa_eqx.reference_chain import chain_shape
from clipa_eqx.saved.optimizer_file import FIRST_SCHEDULE
from clipa_eqx.schedules import Cosine, Polynomial, Rsqrt, Stair, make_multiplier
from clipa_eqx.trees import leaves_by_path, match_by_path

goldens.require("optim")

TOLERANCE = {"rtol": 1e-5, "atol": 1e-7}
META = goldens.load_json("optim/meta.json")
INPUTS = goldens.load_npz("optim/inputs.npz")

NAMES = (
    (r"^img/", "image/"),
    (r"^txt/", "text/"),
    (r"^t$", "log_temperature"),
    (r"Transformer/encoderblock_(\d+)/", r"blocks/\1/"),
    (r"LayerNorm_0/", "norm1/"),
    (r"LayerNorm_1/", "norm2/"),
    (r"MlpBlock_0/Dense_0/", "mlp/fc_in/"),
    (r"MlpBlock_0/Dense_1/", "mlp/fc_out/"),
    (r"MultiHeadDotProductAttention_0/", "attn/"),
    (r"query/", "q/"),
    (r"key/", "k/"),
    (r"value/", "v/"),
    (r"encoder_norm/", "norm/"),
    (r"/cls$", "/class_token"),
    (r"Embed_0/embedding$", "token/weight"),
    (r"embedding/", "patch/"),
    (r"pos_embedding$", "position"),
    (r"(kernel|scale)$", "weight"),
)
MATRIX = "(q|k|v|out|fc_in|fc_out|patch|head)/weight"
PATTERNS = (
    (r"img/", "image/"),
    (r"txt/", "text/"),
    (r"^t$", "log_temperature"),
    (r"encoderblock_(\d+|\.)", r"blocks/\1"),
    (r"embedding/", "patch/"),
    (r"\.\*/kernel\$$", f"(.*/)?{MATRIX}"),
    (r"\.\*/bias\$$", ".*/bias"),
)


def _rewrite(table, name):
    for pattern, replacement in table:
        name = re.sub(pattern, lambda found, to=replacement: found.expand(to) if "\\" in to else to, name)
    return name


def _our_path(name):
    return _rewrite(NAMES, name)


def _our_rules(rules, *, default=None):
    ours = [(_rewrite(PATTERNS, pattern), value) for pattern, value in rules]
    return tuple(ours) if default is None or ours[-1][0] == ".*" else (*ours, (".*", default))


def _stack(arrays, stack=np.stack):
    """A nested tree of our paths, the layers of each tower stacked."""
    layers, tree = {}, {}
    for name, array in arrays.items():
        path = _our_path(name)
        if found := re.fullmatch(r"(.*/blocks)/(\d+)/(.*)", path):
            layers.setdefault(f"{found[1]}/{found[3]}", {})[int(found[2])] = array
        else:
            layers[path] = array
    for path, value in layers.items():
        *groups, last = path.split("/")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = stack([value[i] for i in range(len(value))]) if isinstance(value, dict) else value
    return tree


def _schedule(config):
    if config is None:
        return None
    config = dict(config)
    kind = config.pop("decay_type")
    max_lr, min_lr = config.pop("max_lr", None), config.pop("min_lr", 0)
    ramps = {ramp: _duration(config, ramp) for ramp in ("warmup", "cooldown")}
    ramps["reference_batch_size"] = 256 if config.pop("scale_with_batchsize", False) else None
    if kind == "cosine":
        schedule = Cosine(min_ratio=min_lr / max_lr if min_lr else 0.0, **ramps)
    elif kind in ("linear", "polynomial"):
        end = config.pop("end", config.pop("linear_end", 0.0))
        schedule = Polynomial(end_ratio=float(end), power=float(config.pop("power", 1)), **ramps)
    elif kind == "rsqrt":
        schedule = Rsqrt(timescale_steps=config.pop("timescale", 10_000), **ramps)
    else:
        schedule = Stair(steps=tuple(config.pop("steps")), factors=tuple(config.pop("mults")), **ramps)
    assert not config, f"options the test does not know: {config}"
    return schedule


def _duration(config, prefix):
    units = {"steps": ("steps", int), "examples": ("samples", int), "epochs": ("epochs", float)}
    units["percent"] = ("fraction", float)  # the reference's percent is a fraction
    given = {
        unit: number(config.pop(f"{prefix}_{theirs}"))
        for theirs, (unit, number) in units.items()
        if f"{prefix}_{theirs}" in config
    }
    return Duration(**(given or {"steps": 0}))


def _optim_config(config, depth):
    config = dict(config)
    lr_factors = _our_rules(config.pop("lr_mults", [[".*", 1.0]]), default=1.0)
    if "lwd" in config:
        factor = config.pop("lwd")
        config.pop("model")
        # The reference's patterns for embeddings never match; its blocks are ours.
        rules = [rule for rule in layer_decay_rules(factor, depth=depth, tower="image") if "/blocks/" in rule[0]]
        lr_factors = (*rules, (".*", 1.0))
    scale_by = {"scale_by_adam": None, "identity": optax.identity()}[config.pop("optax_name")]
    ours = OptimConfig(
        peak_lr=config.pop("lr"),
        weight_decay=config.pop("wd"),
        **({"decay": _our_rules(config.pop("wd_mults"), default=0.0)} if "wd_mults" in config else {}),
        lr_factors=lr_factors,
        schedules=tuple((pattern, _schedule(s)) for pattern, s in _our_rules(config.pop("schedule"))),
        # What the config leaves out is optax's default, not ours.
        **{"b2": 0.999, **config.pop("optax")},
        clip_norm=config.pop("grad_clip_norm", None),
    )
    assert not config, f"options the test does not know: {config}"
    return ours, scale_by


@functools.cache
def _run(case):
    """Parameters after each update, the last state, and our configuration."""
    params = _stack(goldens.under(INPUTS, "params0/"))
    depth = len(params["image"]["blocks"]["norm1"]["weight"])
    config, scale_by = _optim_config(META[case]["config"], depth)
    optimizer = make_optimizer(
        config,
        jax.eval_shape(lambda: jax.tree.map(jnp.asarray, params)),
        RunLength(total_steps=META[case]["total_steps"]),
        scale_by=scale_by,
    )
    params = jax.tree.map(jnp.asarray, params)
    state = jax.jit(optimizer.init)(params)
    steps = sorted({int(found[1]) for name in INPUTS if (found := re.match(r"grads(\d+)/", name))})

    @jax.jit
    def update(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    after = {}
    for step in steps:
        params, state = update(_stack(goldens.under(INPUTS, f"grads{step}/")), state, params)
        after[step] = params
    return after, state, config


@pytest.mark.parametrize("case", sorted(META))
def test_parameters_after_each_recorded_update_equal_the_reference(case):
    recorded = goldens.load_npz(f"optim/{case}.npz")
    after, _, config = _run(case)
    steps = sorted({int(found[1]) for name in recorded if (found := re.match(r"params(\d+)/", name))})
    assert steps
    for step in steps:
        expected = leaves_by_path(_stack(goldens.under(recorded, f"params{step}/")))
        found = leaves_by_path(after[step])
        assert expected.keys() == found.keys()
        for path, value in expected.items():
            np.testing.assert_allclose(found[path], value, **TOLERANCE, err_msg=f"{case} step {step} {path}")
    # The recorded multipliers, one row per schedule that does not freeze.
    for row, (pattern, schedule) in zip(
        META[case]["schedule_at_0_to_6"], [rule for rule in config.schedules if rule[1] is not None], strict=True
    ):
        run = RunLength(total_steps=META[case]["total_steps"])
        multiplier = make_multiplier(schedule, run)
        np.testing.assert_allclose([multiplier(k) for k in range(len(row))], row, rtol=1e-6, atol=1e-7)
        rates = [learning_rates(config, k, run)[pattern] for k in range(len(row))]
        np.testing.assert_allclose(rates, np.asarray(row) * config.peak_lr, rtol=1e-6, atol=1e-7)


def _adam(state):
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState))
    return next(node for node in nodes if isinstance(node, optax.ScaleByAdamState))


@pytest.mark.parametrize(
    "case", sorted(c for c in META if any(n.startswith("opt5/") for n in goldens.load_npz(f"optim/{c}.npz")))
)
def test_moments_and_counts_equal_the_reference(case):
    recorded = goldens.load_npz(f"optim/{case}.npz")
    _, state, config = _run(case)
    adam = _adam(state)
    [updates] = [int(n) for path, n in leaves_by_path(state).items() if path.endswith("updates_done")]
    assert updates == int(adam.count) == int(recorded["opt5/1/0/0"])
    counts = [name for name in recorded if re.fullmatch(r"opt5/\d+/0/0", name)]
    assert all(int(recorded[name]) == updates for name in counts)
    for index, moments in ((1, adam.mu), (2, adam.nu)):
        expected = leaves_by_path(_stack(goldens.under(recorded, f"opt5/1/0/{index}/")))
        found = leaves_by_path(moments)
        assert expected.keys() == found.keys()
        for path, value in expected.items():
            np.testing.assert_allclose(
                np.asarray(found[path], np.float32), value, **TOLERANCE, err_msg=f"{case} moment {index} {path}"
            )
            assert found[path].dtype == (config.mu_dtype if index == 1 else "float32")


@pytest.mark.parametrize("case", sorted(META))
def test_exactly_the_recorded_leaves_have_moments(case):
    _, state, _ = _run(case)
    found = {path: leaf for path, leaf in leaves_by_path(state).items() if re.search(r"/(mu|nu)/", path)}
    names = {name: dtype for name, _, dtype in META[case]["opt_state_names"]}
    for index, kind in ((1, "mu"), (2, "nu")):
        recorded = {
            name.removeprefix(f"1/0/{index}/"): dtype
            for name, dtype in names.items()
            if name.startswith(f"1/0/{index}/")
        }
        ours = {path.split(f"/{kind}/")[1]: str(leaf.dtype) for path, leaf in found.items() if f"/{kind}/" in path}
        theirs = {re.sub(r"/blocks/\d+/", "/blocks/", _our_path(name)): dtype for name, dtype in recorded.items()}
        assert ours == theirs


def _is_countable(config):
    """True if our rules determine the number of entries that the reference's patterns make: they merge equal values."""
    decays, factors = (config.get(name, [[".*", 1.0]]) for name in ("wd_mults", "lr_mults"))
    distinct = all(len({value for _, value in rules}) == len(rules) for rules in (decays, factors))
    return distinct and factors[-1][0] == ".*" and "lwd" not in config


@pytest.mark.parametrize("case", sorted(case for case in META if _is_countable(META[case]["config"])))
def test_counts_of_schedules_are_where_the_reference_has_them(case):
    config, _ = _optim_config(META[case]["config"], 2)
    chain = chain_shape(config, _stack(goldens.under(INPUTS, "params0/")))
    names = [name for name, shape, dtype in META[case]["opt_state_names"] if not shape and dtype == "int32"]
    recorded = sorted(int(name.split("/")[0]) for name in names if name != "1/0/0")
    first = FIRST_SCHEDULE + chain.decays + chain.factors
    assert recorded == list(range(first, first + chain.schedules))


def run_length(case):
    return RunLength(**{name: case[name] for name in ("batch_size", "data_size", "total_steps")})


SCHEDULES = goldens.load_json("optim/schedules.json")


@pytest.mark.parametrize("case", SCHEDULES, ids=[case["name"] for case in SCHEDULES])
def test_multipliers_equal_the_reference_over_the_whole_run(case):
    arrays = goldens.under(goldens.load_npz("optim/schedules.npz"), f"{case['name']}/")
    schedule = _schedule(case["schedule"])
    run = run_length(case)
    values = jax.jit(jax.vmap(make_multiplier(schedule, run)))(jnp.asarray(arrays["steps"]))
    np.testing.assert_allclose(values, arrays["values"], rtol=1e-6, atol=1e-7)
    assert schedule.warmup.to_steps(run) == case["resolved_warmup_steps"]
    assert schedule.cooldown.to_steps(run) == case["resolved_cooldown_steps"]


@pytest.mark.parametrize("case", goldens.load_json("optim/steps_resolution.json"), ids=lambda case: str(case["config"]))
def test_durations_become_the_recorded_steps(case):
    duration = _duration(dict(case["config"]), case["prefix"])
    if case["total_steps"] is None:
        sizes = {name: case[name] for name in ("batch_size", "data_size")}
        steps = RunLength.of(duration, **sizes).total_steps
    else:
        steps = duration.to_steps(run_length(case))
    assert steps == case["result"]


@pytest.mark.parametrize("case", goldens.load_json("optim/itstime.json"), ids=str)
def test_periodic_work_is_due_at_the_recorded_steps(case):
    due = [
        step
        for step in range(case["total"] + 1)
        if is_time(step, every_steps=case["every"], total_steps=case["total"], **case["kw"])
    ]
    assert due == case["true_at"]


MASKS = goldens.load_json("optim/mask_names.json")


@pytest.mark.parametrize("patterns", sorted(MASKS["matched"]))
def test_rules_decide_the_recorded_names(patterns):
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    tree = _stack(
        dict.fromkeys(MASKS["all_names"], shape),
        stack=lambda layers: jax.ShapeDtypeStruct((len(layers),), jnp.float32),
    )
    recorded = {_our_path(name): i for i, names in enumerate(MASKS["matched"][patterns]) for name in names}
    rules = [*((_rewrite(PATTERNS, p), i) for i, p in enumerate(patterns.split(" || "))), (".*", None)]
    decided = match_by_path(rules, tree, what="rules", unused="allow")
    for name in MASKS["all_names"]:
        path = _our_path(name)
        value = decided[re.sub(r"/blocks/\d+/", "/blocks/", path)]
        layer = re.search(r"/blocks/(\d+)/", path)
        assert (value[int(layer[1])] if isinstance(value, tuple) else value) == recorded.get(path), path
    if not all(MASKS["matched"][patterns]):
        with pytest.raises(ConfigError, match="decides no leaf"):
            match_by_path(rules, tree, what="rules")
