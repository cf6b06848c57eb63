"""In the loop the devices never wait for the host: steps are queued ahead, and only batches are sent."""

import threading
from unittest import mock

import jax
import numpy as np
import pytest
from support import tiny_runs

from clipa_eqx.durations import Duration
from clipa_eqx.experiment import CheckpointConfig
from clipa_eqx.sharding import MeshConfig, make_mesh
from clipa_eqx.training.device_batches import DeviceBatches
from clipa_eqx.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("quick_compile")

STEPS = 5


def short_run():
    """A run that logs each step, and waits for none before the last, which it saves."""
    return tiny_runs.run_config(
        duration=Duration(steps=STEPS), log_every_steps=1, checkpoint=CheckpointConfig(every_steps=STEPS)
    )


@pytest.mark.parametrize("devices", [1, 8])
def test_a_step_writes_the_new_state_over_the_old_one(devices):
    """Without donation a step would need the memory of two states."""
    config = tiny_runs.run_config(mesh=MeshConfig(fsdp=devices))
    placed = tiny_runs.placed_state(config, devices=devices)
    optimizer, abstract = tiny_runs.optimizer_and_state(config)
    mesh = make_mesh(config.mesh, devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        step = tiny_runs.compile_once(config, optimizer, abstract, mesh)
    leaves = jax.tree.leaves(placed.state)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    assert step.memory_analysis().alias_size_in_bytes == held
    images = np.zeros((16, *tiny_runs.SIZE, 3), np.uint8)
    tokens = np.zeros((16, tiny_runs.LENGTH), np.int32)
    with jax.set_mesh(mesh):
        step(placed.state, {"image": images, "tokens": tokens})
    assert [leaf.is_deleted() for leaf in leaves] == [True] * len(leaves)


def test_the_next_step_starts_before_the_numbers_of_the_last_one_are_there(tmp_path):
    """A loss that comes only when the next step has started would never come if the loop waited for it."""
    started = [threading.Event() for _ in range(STEPS + 1)]
    waited, calls = {}, []

    def wait(loss, step):
        # A small program whose inputs are ready runs within its call: that shows nothing.
        if int(step) < STEPS and threading.current_thread() is not threading.main_thread():
            waited[int(step)] = started[int(step)].wait(timeout=20)
        return loss

    @jax.jit
    def gate(loss, step):
        return jax.pure_callback(wait, jax.ShapeDtypeStruct((), np.float32), loss, step)

    def gated(*args):
        step_fn = tiny_runs.compile_once(*args)

        def run(state, batch):
            started[len(calls)].set()  # step 1 ends the wait of step 0, which there is none of
            calls.append(batch)
            state, metrics = step_fn(state, batch)
            return state, {**metrics, "loss": gate(metrics["loss"], len(calls))}

        return run

    config = short_run()
    tiny_runs.train_on_one_device(config, tmp_path / "run", compiler=gated)
    assert waited
    assert all(waited.values())


@pytest.mark.slow
def test_the_loop_sends_nothing_to_the_devices_unasked(tmp_path):
    """A Python number or a numpy array in a call would be copied to the devices in each step. Batches are sent."""
    name, calls, take = "jax_transfer_guard_host_to_device", [], DeviceBatches.take
    before = jax.config.jax_transfer_guard_host_to_device

    def guarded(*args):
        step_fn = tiny_runs.compile_once(*args)

        def run(state, batch):
            calls.append(batch)
            jax.config.update(name, "disallow" if 1 < len(calls) < STEPS else before)
            return step_fn(state, batch)

        return run

    def allowed(self, **rest):
        with jax.transfer_guard_host_to_device("allow"):
            return take(self, **rest)

    config = short_run()
    try:
        with mock.patch.object(DeviceBatches, "take", allowed):
            tiny_runs.train_on_one_device(config, tmp_path / "run", compiler=guarded)
    finally:
        jax.config.update(name, before)
    assert [line["step"] for line in read_metrics(tmp_path / "run/metrics.jsonl")] == list(range(1, STEPS + 1))
