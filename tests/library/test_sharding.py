"""Meshes change on which devices arrays are, and no results; meshes that do not fit are refused."""

import functools
import re

import jax
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from support import tiny_runs
from support.leaves import as_numpy
from support.tiny_models import tiny_clip_config

from clipa_eqx.durations import Duration, RunLength
from clipa_eqx.errors import ConfigError, ShardingError
from clipa_eqx.losses.config import LossConfig
from clipa_eqx.models.clip import CLIP, abstract_clip
from clipa_eqx.models.presets import PRESETS, preset
from clipa_eqx.optim import OptimConfig, make_optimizer
from clipa_eqx.precision import Precision
from clipa_eqx.sharding import (
    RULES,
    MeshConfig,
    batch_sharding,
    check_batch,
    describe_shardings,
    make_mesh,
    put_global_batch,
    shardings_for,
)
from clipa_eqx.surgery.init_config import InitConfig, abstract_model
from clipa_eqx.surgery.operations import Lora
from clipa_eqx.training.gradients import batch_loss
from clipa_eqx.training.state import abstract_state
from clipa_eqx.trees import leaf_paths, leaves_by_path, match_by_path

pytestmark = pytest.mark.usefixtures("quick_compile")

STEPS = 20
RTOL = 1e-5  # float32: meshes differ in the order of sums


@functools.cache
def run(data, fsdp, tensor=1, *, algorithm="global"):
    config = tiny_runs.run_config(
        model=tiny_clip_config(**tiny_runs.STOCHASTIC),
        mesh=MeshConfig(data=data, fsdp=fsdp, tensor=tensor),
        loss=LossConfig(algorithm=algorithm),
        duration=Duration(steps=STEPS),
    )
    return tiny_runs.drive(config, devices=data * fsdp * tensor, steps=STEPS)


# 8 parts of "tensor" are more than the 2 heads, and 3 divide nothing: both still compute the same.
@pytest.mark.parametrize(
    "sizes",
    [
        (8, 1),
        (1, 8),
        (2, 2, 2),
        (1, 1, 8),
        *(pytest.param(m, marks=pytest.mark.slow) for m in [(4, 2), (1, 1, 2), (2, 1, 3)]),
    ],
    ids=str,
)
def test_meshes_give_the_losses_and_samples_of_one_device(sizes):
    one, many = run(1, 1), run(*sizes)
    np.testing.assert_allclose(many.losses, one.losses, rtol=RTOL)
    assert many.sample_ids == one.sample_ids
    assert np.ptp(one.losses) > 1e-2, "nothing was learned: the comparison would hold for a step that does nothing"


@pytest.mark.slow
@pytest.mark.parametrize(("data", "fsdp"), [(4, 2)])
def test_the_sharded_loss_trains_as_the_global_one(data, fsdp):
    np.testing.assert_allclose(run(data, fsdp, algorithm="sharded").losses, run(data, fsdp).losses, rtol=RTOL)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialization_changes_neither_loss_nor_gradient(remat):
    (loss, grads), (expected_loss, expected_grads) = gradients(remat), gradients("none")
    np.testing.assert_allclose(loss, expected_loss, rtol=RTOL)
    largest = max(np.abs(leaf).max() for leaf in as_numpy(expected_grads))
    grads, expected_grads = leaves_by_path(grads), leaves_by_path(expected_grads)
    assert grads.keys() == expected_grads.keys()
    for path, expected in expected_grads.items():
        # Key biases have no gradient in exact arithmetic: theirs is the rounding of the others.
        scale = largest if path.endswith("attn/k/bias") else np.abs(expected).max()
        np.testing.assert_allclose(grads[path], expected, rtol=0, atol=RTOL * scale, err_msg=path)


@functools.cache
def gradients(remat):
    """Loss and gradients of one batch with everything random on."""
    stochastic = {**tiny_runs.STOCHASTIC, "blocks": {**tiny_runs.STOCHASTIC["blocks"], "remat": remat}}
    model = CLIP.init(tiny_clip_config(**stochastic), key=jr.key(0))
    images = jr.randint(jr.key(1), (4, *tiny_runs.SIZE, 3), 0, 256).astype(np.uint8)
    tokens = jr.randint(jr.key(2), (4, tiny_runs.LENGTH), 0, tiny_runs.VOCAB)

    @jax.jit
    def value_and_grad(model):
        return jax.value_and_grad(lambda m: batch_loss(m, images, tokens, key=jr.key(3), precision=Precision()).loss)(
            model
        )

    return value_and_grad(model)


def test_fsdp_splits_parameters_and_moments_over_the_devices_after_training():
    state, mesh = run(1, 8).state, run(1, 8).mesh
    shardings = leaves_by_path(shardings_for(run(1, 8).abstract, mesh))
    assert shardings.keys() == leaves_by_path(state).keys()
    split = 0
    for path, leaf in leaves_by_path(state).items():
        assert leaf.sharding.is_equivalent_to(shardings[path], leaf.ndim), path
        held = {shard.data.size for shard in leaf.addressable_shards}
        is_matrix = path.endswith(("q/weight", "fc_in/weight", "token/weight", "patch/weight", "head/weight"))
        split += is_matrix
        assert held == {leaf.size // 8 if is_matrix else next(iter(held))}, path
    # Each of the 3 trees of parameters and moments: q and fc_in of both towers, token, patch, two heads.
    assert split == 3 * 8


def test_data_parallel_meshes_hold_whole_copies():
    for leaf in jax.tree.leaves(run(8, 1).state):
        assert {shard.data.shape for shard in leaf.addressable_shards} == {leaf.shape}


def test_matrices_split_their_largest_divisible_axis_but_never_depth():
    mesh = make_mesh(MeshConfig(fsdp=8))
    tree = {
        "image": {"blocks": {"q": {"weight": shape(8, 24, 32)}, "v": {"weight": shape(8, 3, 5)}}},
        "token": {"weight": shape(64, 36)},
        "head": {"weight": shape(9, 7)},
    }
    assert describe_shardings(tree, mesh) == {
        "image/blocks/q/weight": PartitionSpec(None, None, "fsdp"),
        "image/blocks/v/weight": PartitionSpec(),
        "token/weight": PartitionSpec("fsdp", None),
        "head/weight": PartitionSpec(),
    }


def test_heads_and_hidden_layers_are_split_over_tensor_and_the_rest_over_fsdp():
    tree = {"blocks": {"attn": attention(2, 12, 12), "mlp": mlp(2, 24, 12)}, "head": linear(8, 12)}
    assert describe_shardings(tree, make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))) == {
        "blocks/attn/q/weight": PartitionSpec(None, "tensor", "fsdp"),
        "blocks/attn/q/bias": PartitionSpec(None, "tensor"),
        "blocks/attn/out/weight": PartitionSpec(None, "fsdp", "tensor"),
        "blocks/attn/out/bias": PartitionSpec(),
        "blocks/mlp/fc_in/weight": PartitionSpec(None, "tensor", "fsdp"),
        "blocks/mlp/fc_in/bias": PartitionSpec(None, "tensor"),
        "blocks/mlp/fc_out/weight": PartitionSpec(None, "fsdp", "tensor"),
        "blocks/mlp/fc_out/bias": PartitionSpec(),
        "head/weight": PartitionSpec(None, "fsdp"),
        "head/bias": PartitionSpec(),
    }


def test_what_tensor_does_not_divide_is_split_over_fsdp_only():
    assert describe_shardings({"attn": attention(2, 10, 12)}, make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))) == {
        "attn/q/weight": PartitionSpec(None, None, "fsdp"),
        "attn/q/bias": PartitionSpec(),
        "attn/out/weight": PartitionSpec(None, "fsdp", None),
        "attn/out/bias": PartitionSpec(),
    }


def test_tensor_splits_the_work_of_a_block_with_two_sums_in_each_direction():
    """The sums of the residual stream: after attention and MLP going forward, before them going back, per tower."""
    model = abstract_clip(tiny_clip_config())
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    shardings, batch = shardings_for(model, mesh), batch_sharding(mesh)

    def gradient(model, images, tokens):
        return jax.grad(lambda m: batch_loss(m, images, tokens, key=None, precision=Precision(), mesh=mesh).loss)(model)

    with jax.set_mesh(mesh):
        step = jax.jit(gradient, in_shardings=(shardings, batch, batch), out_shardings=shardings)
        text = step.lower(model, shape(8, *tiny_runs.SIZE, 3, dtype=np.uint8), shape(8, 8, dtype=np.int32)).compile()
    width = model.config.image.blocks.width
    found = re.findall(rf"f32\[2,(\d+),{width}\]\S* all-reduce\(", text.as_text())
    assert sorted(found) == sorted(4 * [str(model.config.image.patches + 1)] + 4 * ["8"])


@pytest.mark.parametrize("name", PRESETS)
def test_every_leaf_of_a_presets_state_has_a_rule_and_the_large_ones_are_split(name):
    config = preset(name)
    optimizer = make_optimizer(OptimConfig(peak_lr=1e-3), abstract_clip(config), RunLength(total_steps=10))
    abstract = abstract_state(config, optimizer)
    specs = describe_shardings(abstract, make_mesh(MeshConfig(fsdp=8)))
    assert list(specs) == leaf_paths(abstract)
    large = [path for path, leaf in leaves_by_path(abstract).items() if leaf.size > 2**20]
    assert len(large) >= 3 * 5  # parameters and two moments: the table and both towers' MLPs at the least
    assert [path for path in large if "fsdp" not in specs[path]] == []


def test_every_rule_decides_some_leaf_of_a_state_or_of_the_factors_of_lora():
    config = preset("B/16")
    factors = Lora(rank=2, alpha=2.0, targets=(".*/blocks/(attn/(q|k|v|out)|mlp/fc_(in|out))/weight",))
    with_factors = abstract_model(config, InitConfig(source="anywhere", surgery=(factors,)))
    abstract = abstract_state(
        config, make_optimizer(OptimConfig(peak_lr=1e-3), abstract_clip(config), RunLength(total_steps=10))
    )
    match_by_path(RULES, {"state": abstract, "model": with_factors}, what="sharding.RULES", unused="error")


def test_a_leaf_without_a_rule_is_refused_by_path():
    with pytest.raises(ConfigError, match=r"sharding\.RULES.*'image/adapter'"):
        shardings_for({"image": {"adapter": shape(8, 8)}}, make_mesh(MeshConfig(fsdp=8)))


@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(8, 1, 1), (1, 8, 1), (4, 2, 1), (2, 2, 2), (1, 1, 8)])
def test_rows_of_a_batch_keep_their_order_over_the_devices(data, fsdp, tensor):
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
    rows = np.arange(16, dtype=np.int32)
    array = put_global_batch({"tokens": rows}, mesh)["tokens"]
    shards = sorted(array.addressable_shards, key=lambda shard: shard.device.id)
    np.testing.assert_array_equal(np.concatenate([shard.data for shard in shards[::tensor]]), rows)
    assert all(np.array_equal(shards[at].data, shards[at - at % tensor].data) for at in range(8))


def test_a_mesh_that_does_not_make_the_devices_is_refused_with_their_number():
    with pytest.raises(ShardingError, match=r"data=3 x fsdp=1 .* 8 devices"):
        make_mesh(MeshConfig(data=3))
    with pytest.raises(ShardingError, match="data=None x fsdp=3 "):
        make_mesh(MeshConfig(fsdp=3))
    assert dict(make_mesh(MeshConfig(fsdp=2)).shape) == {"data": 4, "fsdp": 2, "tensor": 1}


def test_impossible_axes_are_refused_when_written():
    with pytest.raises(ConfigError, match=r"mesh\.fsdp is 0"):
        MeshConfig(fsdp=0)
    with pytest.raises(ConfigError, match=r"mesh\.tensor is -1"):
        MeshConfig(tensor=-1)


def test_a_batch_the_devices_do_not_divide_is_refused():
    with pytest.raises(ShardingError, match=r"batch_size 12 .* multiple of 8"):
        check_batch(12, make_mesh(MeshConfig(fsdp=2)))


def shape(*sizes, dtype=np.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def linear(*weight):
    return {"weight": shape(*weight), "bias": shape(*weight[:-1])}


def attention(depth, out, width):
    return {"q": linear(depth, out, width), "out": linear(depth, width, out)}


def mlp(depth, hidden, width):
    return {"fc_in": linear(depth, hidden, width), "fc_out": linear(depth, width, hidden)}
