"""Checkpoints are restored bit by bit on any mesh, or refused."""

import shutil

import jax
import numpy as np
import pytest
from support import tiny_runs
from support.leaves import as_numpy, assert_bit_equal
from support.tiny_models import tiny_clip_config

from clipa_eqx.errors import CheckpointError, DamageError
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.sharding import MeshConfig, make_mesh, shardings_for
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.trees import leaves_by_path

pytestmark = pytest.mark.usefixtures("quick_compile")

ABOUT = {"config": {"seed": 0}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A state split over 8 devices, and the folder that holds it as step 3."""
    made = tiny_runs.placed_state(tiny_runs.run_config(mesh=MeshConfig(fsdp=8)), devices=8)
    path = tmp_path_factory.mktemp("split") / "checkpoints"
    with Checkpoints(path, keep=2) as checkpoints:
        checkpoints.save(made.state, step=3, about=ABOUT)
    return made, path


@pytest.mark.parametrize(("data", "fsdp"), [(1, 4), (1, 1), (4, 2)])
def test_a_state_split_over_8_devices_is_restored_bit_by_bit_onto_another_mesh(saved, data, fsdp):
    made, path = saved
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp), devices=jax.devices()[: data * fsdp])
    with Checkpoints(path, keep=2) as checkpoints:
        restored = checkpoints.restore(made.abstract, mesh, step=3)
    assert_bit_equal((restored.model, restored.opt_state), (made.state.model, made.state.opt_state))
    assert int(restored.step) == 3
    for leaf, wanted in zip(
        jax.tree.leaves(restored), jax.tree.leaves(shardings_for(made.abstract, mesh)), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)


def test_a_checkpoint_with_the_former_name_of_the_optimizer_state_is_restored_bit_by_bit(saved, tmp_path):
    made, path = saved
    former = shutil.copytree(path, tmp_path / "checkpoints")
    (former / "3" / "optimizer").rename(former / "3" / "optimiser")
    with Checkpoints(former, keep=None) as checkpoints:
        restored = checkpoints.restore(made.abstract, made.mesh, step=3)
        name = next(name for name in checkpoints.record(3).leaves if "/mu/" in name)
        moment = checkpoints.read_leaf(3, name)
    assert_bit_equal((restored.model, restored.opt_state), (made.state.model, made.state.opt_state))
    np.testing.assert_array_equal(moment, leaves_by_path(made.state)[name])


def test_the_model_alone_is_restored(saved):
    made, path = saved
    with Checkpoints(path, keep=2) as checkpoints:
        model = checkpoints.restore_model(abstract_clip(made.state.model.config), make_mesh(MeshConfig()), step=3)
        assert checkpoints.record(3).about == ABOUT
    assert_bit_equal(model, made.state.model)


def test_a_checkpoint_of_another_architecture_is_refused_with_every_differing_leaf(saved):
    _, path = saved
    other = tiny_runs.placed_state(tiny_runs.run_config(model=tiny_clip_config(text={"vocab": 80})), devices=1)
    with Checkpoints(path, keep=2) as checkpoints:
        with pytest.raises(CheckpointError, match=r"of another architecture") as caught:
            checkpoints.restore(other.abstract, other.mesh, step=3)
        with pytest.raises(CheckpointError, match=r"text/token/weight: float32\[64, 32\] in the checkpoint"):
            checkpoints.restore_model(abstract_clip(other.state.model.config), other.mesh, step=3)
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert len(lines) == 3  # the table and its two moments
    assert all("text/token/weight: float32[64, 32] in the checkpoint, float32[80, 32] expected" in x for x in lines)


def test_leaves_that_only_one_side_has_are_named(saved):
    made, path = saved
    config = tiny_clip_config(image={"position": "learned", "pool": "first"})
    with (
        Checkpoints(path, keep=2) as checkpoints,
        pytest.raises(
            CheckpointError, match=r"(?s)missing in the checkpoint: image/position.*not in this model: image/norm"
        ),
    ):
        checkpoints.restore_model(abstract_clip(config), made.mesh, step=3)
    assert abstract_clip(config).image.norm is None


def test_a_damaged_checkpoint_is_refused_by_name(saved, tmp_path):
    made, path = saved
    for name in ("model", "record"):
        damaged = tmp_path / name
        shutil.copytree(path, damaged)
        for file in (damaged / "3" / name).rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
        with (
            Checkpoints(damaged, keep=2) as checkpoints,
            pytest.raises(DamageError, match=rf"checkpoint {damaged}/3 is damaged: .*cannot be read"),
        ):
            checkpoints.restore(made.abstract, made.mesh, step=3)


def test_a_step_that_was_not_committed_is_not_there(saved, tmp_path):
    _, path = saved
    copy = tmp_path / "checkpoints"
    shutil.copytree(path, copy)
    shutil.copytree(path / "3", copy / "7.orbax-checkpoint-tmp")
    with Checkpoints(copy, keep=2) as checkpoints:
        assert checkpoints.latest() == 3


def test_the_last_steps_are_kept_and_a_state_may_be_overwritten_while_it_is_written(tmp_path):
    made = tiny_runs.placed_state(tiny_runs.run_config(), devices=1)
    grow = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    state, seen = made.state, {}
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.latest() is None
        for step in (1, 2, 3):
            seen[step] = [leaf.copy() for leaf in as_numpy(state.model)]
            checkpoints.save(state, step=step, about=ABOUT)
            state = grow(state)
        checkpoints.wait()
        assert checkpoints.latest() == 3
        for step in (2, 3):
            restored = checkpoints.restore(made.abstract, made.mesh, step=step)
            assert_bit_equal(as_numpy(restored.model), seen[step])
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
