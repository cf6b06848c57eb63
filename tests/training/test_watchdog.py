"""The watchdog of one process: when it fires, when it does not, and what it leaves behind."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from support import tiny_runs
from support.paths import ROOT

from clipa_eqx.cli import STALLED
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.training.inputs import open_sources, train_batches
from clipa_eqx.training.watchdog import PATIENCE, Watchdog


class Ended:
    """The end of a process, as the watchdog asks for it."""

    def __init__(self):
        self.codes, self.happened = [], threading.Event()

    def __call__(self, code):
        self.codes.append(code)
        self.happened.set()


def test_it_writes_the_stacks_and_ends_the_process_when_nothing_moves(tmp_path, capfd):
    ended, written = Ended(), []
    with Watchdog(seconds=0.1, end=ended, tick=0.02) as watchdog:
        watchdog.folder, watchdog.write = tmp_path / "flight", written.append
        watchdog.stepping()
        watchdog.at("waiting for the numbers of step 7")
        assert ended.happened.wait(20)
    assert ended.codes == [STALLED]
    message = "no progress for 0.1 s while waiting for the numbers of step 7. Run the same command again to resume"
    text = (tmp_path / "flight/stacks-0.txt").read_text()
    assert message in text
    assert "in test_it_writes_the_stacks_and_ends_the_process_when_nothing_moves" in text
    said = capfd.readouterr().err
    assert f"error: {message}" in said
    assert "in test_it_writes_the_stacks" in said
    assert [message in one for one in written] == [True]


def test_progress_and_phases_keep_it_quiet():
    ended = Ended()
    with Watchdog(seconds=0.4, end=ended, tick=0.02) as watchdog:
        watchdog.stepping()
        for _ in range(8):
            time.sleep(0.1)
            watchdog.alive()
        with watchdog.phase("saving"):
            time.sleep(0.4 * (PATIENCE - 1))
        time.sleep(0.1)
    time.sleep(0.6)  # it is over
    assert ended.codes == []


@pytest.mark.slow
def test_the_time_in_which_its_process_was_suspended_does_not_count(tmp_path):
    program = """
import os, signal, threading, time
from clipa_eqx.training.watchdog import Watchdog
print("ready", flush=True)
with Watchdog(seconds=4.0) as watchdog:
    watchdog.stepping()
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(2.0)
print("unharmed", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.waitpid(process.pid, os.WUNTRACED)
        time.sleep(8.0)
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdout.read() == "unharmed\n"


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_limit_that_is_not_positive_is_refused(seconds):
    with pytest.raises(ConfigError, match=r"watchdog is .*; it must be a positive number of seconds, or None"):
        tiny_runs.run_config(watchdog=seconds)


def take_all(batches, watchdog):
    for _ in batches:
        watchdog.alive()


def test_a_stopped_worker_fires_it_and_does_not_outlive_the_process():
    config = tiny_runs.run_config()
    stream = StreamConfig(workers=1, threads=1, prefetch_batches=1)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, stream=stream))
    ended, workers = Ended(), []
    tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
    with (
        Watchdog(seconds=2.0, end=ended) as watchdog,
        train_batches(config, open_sources(config), tokenizer, start_step=0) as batches,
    ):
        next(batches)
        workers += multiprocessing.active_children()
        for worker in workers:
            os.kill(worker.pid, signal.SIGSTOP)
        watchdog.stepping()
        # The watchdog kills the worker.
        with pytest.raises(DataError, match="died by SIGKILL"):
            take_all(batches, watchdog)
    assert ended.codes == [STALLED]
    assert workers
    assert not any(worker.is_alive() for worker in workers)
