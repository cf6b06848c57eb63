"""A run that is interrupted and resumed is bit by bit the run that was not interrupted."""

import os
import signal
from unittest import mock

import pytest
from support import tiny_runs
from support.tiny_models import tiny_clip_config
from support.train_processes import assert_same_runs

from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.reporting import Reports
from clipa_eqx.training.stopping import Interrupted

pytestmark = pytest.mark.usefixtures("quick_compile")

STEPS = 12


def test_sigterm_saves_the_step_and_the_run_resumes_bit_by_bit(tmp_path):
    config = tiny_runs.run_config(model=tiny_clip_config(**tiny_runs.STOCHASTIC))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    tiny_runs.train_on_one_device(config, whole)
    finish = Reports.finish

    def stop_after_step_6(self, numbers, **rest):
        finish(self, numbers, **rest)
        if numbers.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with (
        mock.patch.object(Reports, "finish", stop_after_step_6),
        pytest.raises(Interrupted, match="after step 7 of 12"),
    ):
        tiny_runs.train_on_one_device(config, stopped)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert [line["step"] for line in read_metrics(stopped / "metrics.jsonl")] == list(range(1, 8))
    tiny_runs.train_on_one_device(config, stopped)
    assert_same_runs(stopped, whole, steps=STEPS)
    assert tiny_runs.train_on_one_device(config, stopped).steps == STEPS
    assert_same_runs(stopped, whole, steps=STEPS)  # starting a finished run again changes nothing
