"""The log of metrics as a file: each step once, whatever an interrupted run left, and rates that add up."""

import json
import math

import jax.numpy as jnp
import pytest

from clipa_eqx.errors import CheckpointError
from clipa_eqx.training import metrics
from clipa_eqx.training.metrics import MetricLog, Throughput, is_finite, read_metrics, to_host

WHOLE = "".join(f'{{"step": {step}, "loss": {step / 2}}}\n' for step in range(1, 6))


def steps(path):
    return [line["step"] for line in read_metrics(path)]


@pytest.mark.parametrize("cut", range(0, len(WHOLE), 5))
def test_a_log_cut_anywhere_resumes_with_each_step_once(cut, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(WHOLE[:cut])
    written = steps(path)
    assert written == list(range(1, WHOLE[:cut].count("\n") + 1))
    resumed_at = min(2, len(written))
    log = MetricLog(path, step=resumed_at)
    assert steps(path) == written[:resumed_at]
    for step in range(resumed_at + 1, 6):
        log.write(step, {"loss": step / 2})
    log.close()
    assert path.read_text() == WHOLE


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    log = MetricLog(tmp_path / "metrics.jsonl", step=0)
    log.write(1, {"loss": math.nan, "norm": [1.0, math.inf], "note": "größer"})
    [line] = read_metrics(tmp_path / "metrics.jsonl")
    log.close()
    assert math.isnan(line["loss"])
    assert (line["norm"], line["note"]) == ([1.0, math.inf], "größer")


def test_without_a_log_there_are_no_metrics(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("line", ["", "{", "3", "[1]", '{"loss": 1}', "null"])
def test_a_damaged_line_is_named_and_nothing_is_dropped(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    text = f'{{"step": 1}}\n{line}\n{{"step": 3}}\n'
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl line 2 is damaged; delete that line to resume"):
        MetricLog(path, step=3)
    assert path.read_text() == text


def test_metrics_of_the_device_become_plain_numbers():
    values = to_host({"loss": jnp.float32(0.5), "norm": jnp.arange(3), "is_bad": jnp.array(True)})
    assert json.loads(json.dumps(values)) == {"loss": 0.5, "norm": [0.0, 1.0, 2.0], "is_bad": 1.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm", "update_norm"])
def test_a_step_is_finite_only_if_loss_gradient_and_update_are(name, bad):
    good = {"loss": 1.0, "grad_norm": 0.0, "update_norm": 2.0, "other": math.nan}
    assert is_finite(good)
    assert not is_finite(good | {name: bad})


class Clock:
    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(metrics, "time", made)
    return made


def test_rates_are_those_of_the_steps_since_the_last_call(clock):
    throughput = Throughput(batch_size=32, devices=4)
    for _ in range(5):
        throughput.starved(0.1)
    clock.now += 2.0
    rates = throughput.rates(5)
    assert rates["images_per_second"] == pytest.approx(80)
    assert rates["images_per_second_per_device"] == pytest.approx(20)
    assert rates["seconds_per_step"] == pytest.approx(0.4)
    assert rates["input_bound_percent"] == pytest.approx(25)
    clock.now += 1.0
    assert throughput.rates(6)["images_per_second"] == pytest.approx(32)


def test_host_time_is_the_time_without_waiting_for_batches_and_devices(clock, monkeypatch):
    def computed(running):
        clock.now += running

    monkeypatch.setattr(metrics.jax, "block_until_ready", computed)
    throughput = Throughput(batch_size=32, devices=4)
    for _ in range(4):
        clock.now += 0.01  # work of the host
        throughput.wait_for(0.4)
        clock.now += 0.1
        throughput.waited(0.1)  # waiting for a batch
    with throughput.paused(0.5):
        clock.now += 600.0
    assert throughput.rates(4)["host_seconds_per_step"] == pytest.approx(0.01)
    clock.now += 0.5
    assert throughput.rates(5)["host_seconds_per_step"] == pytest.approx(0.5)
    throughput.waited(9.0)
    assert throughput.rates(6)["host_seconds_per_step"] == 0.0


def test_rates_of_a_resumed_run_and_of_consecutive_steps_count_finished_steps(clock):
    throughput = Throughput(batch_size=4, devices=1, step=10)
    for step in (11, 12):
        clock.now += 2.0
        rates = throughput.rates(step)
        assert rates["seconds_per_step"] == pytest.approx(2.0)
        assert rates["images_per_second"] == pytest.approx(2.0)


def test_pauses_do_not_count_and_waiting_is_at_most_all_of_the_time(clock):
    throughput = Throughput(batch_size=8, devices=1)
    throughput.starved(30.0)
    clock.now += 1.0
    with throughput.paused(None):
        clock.now += 600.0
    rates = throughput.rates(1)
    assert rates["seconds_per_step"] == pytest.approx(1.0)
    assert rates["input_bound_percent"] == 100.0
