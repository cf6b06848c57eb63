"""While the devices work on a step, the batch of the next step is fetched and sent to them."""

import threading
from unittest import mock

import jax
import numpy as np
import pytest
from support import tiny_runs

from clipa_eqx.data.prefetch import BatchIterator
from clipa_eqx.durations import Duration, RunLength
from clipa_eqx.sharding import make_mesh
from clipa_eqx.training.compiled_step import compile_step
from clipa_eqx.training.device_batches import DeviceBatches
from clipa_eqx.training.metrics import Throughput, read_metrics
from clipa_eqx.training.reporting import Reports, StepNumbers

pytestmark = pytest.mark.usefixtures("quick_compile")

STEPS = 5


def test_a_step_may_run_until_the_next_batch_is_fetched(tmp_path):
    """A step that ends only when the next batch has been fetched would never end if the loop fetched after it."""
    fetched = [threading.Event() for _ in range(STEPS + 1)]
    waited, taken = {}, []
    take = DeviceBatches.take

    def wait(loss, step):
        # A small program whose inputs are ready runs within its call, if the loop was late: that shows nothing.
        if int(step) < STEPS and threading.current_thread() is not threading.main_thread():
            waited[int(step)] = fetched[int(step)].wait(timeout=20)
        return loss

    @jax.jit
    def gate(loss, step):
        return jax.pure_callback(wait, jax.ShapeDtypeStruct((), np.float32), loss, step)

    def gated(*args):
        step_fn = compile_step(*args)

        def run(state, batch):
            step = len(taken)  # batch 1 comes before step 1
            state, metrics = step_fn(state, batch)
            return state, {**metrics, "loss": gate(metrics["loss"], step)}

        return run

    def recorded(self, **rest):
        batch = take(self, **rest)
        fetched[len(taken)].set()
        taken.append(batch)
        return batch

    config = tiny_runs.run_config(duration=Duration(steps=STEPS))
    with mock.patch.object(DeviceBatches, "take", recorded):
        tiny_runs.train_on_one_device(config, tmp_path / "run", compiler=gated)
    assert waited
    assert all(waited.values())
    assert [line["step"] for line in read_metrics(tmp_path / "run/metrics.jsonl")] == list(range(1, STEPS + 1))


def test_all_numbers_of_a_step_come_to_the_host_at_once(tmp_path):
    """Each number that is fetched separately would wait for the devices once more."""
    numbers = {"loss": 2.5, "accuracy": 0.5, "grad_norm": 1.0, "update_norm": 1.0, "truncated": 4, "substituted": 1}
    numbers |= {"pieces": 40, "unknown": 10}
    on_devices = {name: jax.device_put(np.asarray(value)) for name, value in numbers.items()}
    config = tiny_runs.run_config()
    with (
        Reports(config, tmp_path, RunLength(total_steps=9, batch_size=16, data_size=9), start=0, devices=1) as reports,
        mock.patch.object(jax, "device_get", wraps=jax.device_get) as fetch,
    ):
        reports.finish(StepNumbers(1, on_devices, np.arange(16)), last_checkpoint=lambda: None)
    assert [sorted(call.args[0]) for call in fetch.call_args_list] == [sorted(numbers)]
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (line["loss"], line["truncated_fraction"], reports.bad_records) == (2.5, 4 / config.batch_size, 1)
    assert line["unknown_fraction"] == 0.25
    assert not {"truncated", "substituted", "pieces", "unknown"} & line.keys()


def test_waiting_counts_as_input_bound_only_while_the_devices_are_idle():
    class Running:
        def __init__(self, is_over):
            self.is_ready = lambda: is_over

    rows = {
        "image": np.zeros((8, 2, 2, 3), np.uint8),
        "tokens": np.zeros((8, 3), np.int32),
        "truncated": np.zeros(8, bool),
        "substituted": np.zeros(8, bool),
        "pieces": np.ones(8, np.int32),
        "unknown": np.zeros(8, np.int32),
        "sample_id": np.arange(8),
    }

    def slow():
        while True:
            threading.Event().wait(0.02)
            yield rows

    mesh = make_mesh(tiny_runs.run_config().mesh)
    batches = DeviceBatches(BatchIterator(slow()), mesh)
    busy = batches.take(running=Running(is_over=False))
    idle = batches.take(running=Running(is_over=True))
    assert busy.starved_seconds == 0.0
    assert idle.starved_seconds >= 0.02

    throughput = Throughput(batch_size=8, devices=1)
    throughput.starved(1e9)
    assert throughput.rates(1)["input_bound_percent"] == 100.0
    throughput.starved(0.0)
    assert throughput.rates(2)["input_bound_percent"] == 0.0
