"""The line at start-up that compares the input with the step, and names what to change."""

import dataclasses
import re
import threading
from unittest import mock

import pytest
from support import tiny_runs

from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.training import input_forecast
from clipa_eqx.training.input_forecast import (
    TIMED_STEPS,
    InputForecast,
    StepClock,
    mean_record_bytes,
    slow_input_advice,
    step_seconds,
)
from clipa_eqx.training.inputs import open_sources
from clipa_eqx.training.read_ahead import ReadAhead

pytestmark = pytest.mark.usefixtures("quick_compile")


def lines(caplog):
    return [one.getMessage() for one in caplog.records if one.getMessage().startswith("the input")]


@pytest.mark.parametrize("workers", [0, 1])
def test_each_start_of_a_run_prints_one_line(tmp_path, caplog, workers):
    caplog.set_level("INFO")
    config = tiny_runs.run_config()
    stream = StreamConfig(workers=workers, threads=1, prefetch_batches=1)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, stream=stream))
    tiny_runs.train_on_one_device(config, tmp_path / "run")
    (line,) = lines(caplog)
    assert re.match(r"the input makes (at least )?[\d,]+ images/s, the step needs [\d,]+: ", line)


class Measured(ReadAhead):
    """A finished measurement."""

    is_measured, is_at_least, rate = True, False, None

    def __init__(self):
        pass

    def images_per_second(self):
        return self.rate


class Clock(StepClock):
    def __init__(self, seconds):
        self.seconds = lambda: seconds


def forecast(rate, *, seconds=0.5, is_resumed=False, **rows):
    """A forecast whose step of 16 rows takes so many seconds, and whose input makes ``rate`` images/s."""
    config = tiny_runs.run_config()
    measured = Measured()
    for name, value in {"rate": rate, **rows}.items():
        setattr(measured, name, value)
    made = InputForecast(config, open_sources(config), measured, local_rows=16, is_resumed=is_resumed)
    made.clock = Clock(seconds)
    return made


def test_a_fast_input_needs_no_change(caplog):
    caplog.set_level("INFO")
    made = forecast(100.0)
    made.print_once()
    made.print_once()
    assert lines(caplog) == ["the input makes 100 images/s, the step needs 32: nothing to change"]


def test_a_slow_input_says_how_long_devices_wait_and_what_to_change(caplog):
    caplog.set_level("INFO")
    with mock.patch.object(input_forecast, "available_processors", return_value=16):
        forecast(8.0).print_once()
    assert lines(caplog) == [
        "the input makes 8 images/s, the step needs 32: the devices will wait 75 % of the time. Change first: "
        "--data.stream.workers 4 instead of 0 (16 processors here)"
    ]


def test_a_lower_bound_of_the_input_is_no_alarm(caplog):
    caplog.set_level("INFO")
    forecast(8.0, is_at_least=True).print_once()
    assert lines(caplog) == ["the input makes at least 8 images/s, the step needs 32: see input_bound_percent"]


def test_nothing_is_printed_before_both_rates_are_known(caplog):
    caplog.set_level("INFO")
    forecast(100.0, seconds=None).print_once()
    forecast(100.0, is_measured=False).print_once()
    forecast(None).print_once()
    assert lines(caplog) == []


@pytest.mark.parametrize(("process", "rate", "printed"), [(0, 100.0, True), (1, 100.0, False), (1, 8.0, True)])
def test_process_0_prints_and_others_only_if_their_own_input_is_slow(caplog, process, rate, printed):
    caplog.set_level("INFO")
    made = forecast(rate)
    with (
        mock.patch.object(input_forecast.jax, "process_index", return_value=process),
        mock.patch.object(input_forecast.jax, "process_count", return_value=2),
    ):
        made.print_once()
    assert [line.startswith(f"the input of process {process} of 2 makes") for line in lines(caplog)] == [True] * printed


def advice(*, workers=0, mode="fast", shortage=2.0, processors=8, record_bytes=20_000.0, is_resumed=False):
    config = tiny_runs.run_config()
    data = dataclasses.replace(
        config.data,
        stream=StreamConfig(workers=workers),
        image=dataclasses.replace(config.data.image, mode=mode),
    )
    config = dataclasses.replace(config, data=data)
    return slow_input_advice(
        config, shortage=shortage, processors=processors, record_bytes=record_bytes, is_resumed=is_resumed
    )


def test_advice_names_workers_then_fast_decoding_then_smaller_records():
    found = advice(workers=2, mode="exact", record_bytes=90_000.0)
    assert found == (
        "Change first: --data.stream.workers 4 instead of 2 (8 processors here); then --data.image.mode fast, which "
        "decodes at a reduced size; then records converted with --max-side 256 (now 90 kB each)"
    )
    assert "image.mode" not in advice(workers=2, mode="exact", is_resumed=True)
    assert "--data.stream.workers 8 instead of 7" in advice(workers=7)
    assert "--data.stream.workers 8 instead of 1" in advice(workers=1, shortage=30.0)
    assert "workers" not in advice(workers=8, record_bytes=90_000.0)


def test_a_machine_that_does_all_it_can_is_said_to_be_too_small():
    assert advice(workers=8).startswith("All 8 processors read already: use a machine with more of them")


def test_records_are_measured_by_their_manifests():
    source = open_sources(tiny_runs.run_config())
    size = sum(file.stat().st_size for file in (tiny_runs.folder() / "records").glob("*.array_record"))
    assert mean_record_bytes(source) == pytest.approx(size / tiny_runs.RECORDS)


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        ([(0.0, 5.0), (1.0, 7.0), (6.0, 9.5)], 2.0),  # each starts before the one before it has ended
        ([(0.0, 5.0), (8.0, 9.0), (12.0, 13.5)], 1.0),  # the devices wait for the input between them
        ([(12.0, 13.5), (0.0, 5.0), (8.0, 9.0)], 1.0),  # threads may note the ends in another order
    ],
)
def test_a_step_takes_the_time_on_the_devices_without_waiting_for_input(spans, seconds):
    assert step_seconds(spans) == seconds


def test_the_clock_times_the_first_steps_and_does_not_wait():
    class Running:
        def __init__(self):
            self.over = threading.Event()

        def block_until_ready(self):
            self.over.wait()

    clock, results = StepClock(), [Running() for _ in range(TIMED_STEPS + 2)]
    for at, one in enumerate(results):
        clock.started(one, since=float(at))
    assert clock.seconds() is None
    for one in results:
        one.over.set()
    for thread in threading.enumerate():
        if thread.name == "step-clock":
            thread.join()
    assert clock.seconds() is not None
