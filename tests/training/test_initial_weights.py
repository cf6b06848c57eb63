"""Initial weights are the same bits on every mesh. Compiled in full: the optimized sampler is what may differ."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from support import tiny_runs
from support.tiny_models import tiny_clip_config

from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.models.presets import preset
from clipa_eqx.sharding import AXES, MeshConfig, describe_shardings, make_mesh, sampling_shardings_for, shardings_for
from clipa_eqx.training.start import first_state
from clipa_eqx.trees import leaves_by_path


def initial_weights(data, fsdp):
    config = tiny_runs.run_config(model=tiny_clip_config())
    optimizer, abstract = tiny_runs.optimizer_and_state(config)
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp), devices=jax.devices()[: data * fsdp])
    with jax.set_mesh(mesh):
        state = first_state(config, optimizer, abstract=abstract, mesh=mesh, vocab_sha256="any")
    assert leaves_by_path(jax.tree.map(lambda x: x.sharding.spec, state.model)) == describe_shardings(state.model, mesh)
    return leaves_by_path(state.model)


def test_initial_weights_are_bit_equal_over_meshes():
    """Split over 8 devices, this model's heads have 4 columns on each, which JAX 0.12 samples to other last bits."""
    head = shardings_for(abstract_clip(tiny_clip_config()), AbstractMesh((1, 8, 1), AXES)).image.head.weight
    assert head.shard_shape((16, 32)) == (16, 4)
    one, eight = initial_weights(1, 1), initial_weights(1, 8)
    assert one.keys() == eight.keys()
    for path, weights in eight.items():
        np.testing.assert_array_equal(weights, one[path], err_msg=path)


@pytest.mark.parametrize(("name", "fsdp"), [("Ti/16", 96), ("H/14", 256)])
def test_no_last_axis_is_split_while_sampling(name, fsdp):
    """All other leaves are sampled as they are split in training, so that sampling needs no more memory."""
    model, mesh = abstract_clip(preset(name)), AbstractMesh((1, fsdp, 1), AXES)
    final = leaves_by_path(shardings_for(model, mesh))
    for path, sharding in leaves_by_path(sampling_shardings_for(model, mesh)).items():
        leaf = leaves_by_path(model)[path]
        assert sharding.shard_shape(leaf.shape)[-1:] == leaf.shape[-1:], path
        if final[path].shard_shape(leaf.shape)[-1:] == leaf.shape[-1:]:
            assert sharding == final[path], path
