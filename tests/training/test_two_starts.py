"""Two starts of training in one run folder, a scheduler's signal, and the exit codes of both."""

import json
import signal

from support import train_processes
from support.train_processes import wait_for, write_config

from clipa_eqx.cli import INTERRUPTED
from clipa_eqx.training.metrics import read_metrics

# Each step after the fifth waits until the test lets it go.
HELD = """
import time

finish_step = Reports.finish


def hold(self, numbers, **rest):
    while numbers.step > 5 and "HELD_BY" in os.environ and not os.path.exists(os.environ["HELD_BY"]):
        time.sleep(0.01)
    finish_step(self, numbers, **rest)


Reports.finish = hold
"""


def test_a_second_start_with_other_flags_is_refused_and_the_first_is_interrupted_requeued_and_complete(tmp_path):
    config, run, go = write_config(tmp_path / "run.py", steps=12, before=HELD), tmp_path / "run", tmp_path / "go"
    logs = [tmp_path / f"{name}.log" for name in ("first", "second", "again")]
    first = train_processes.start(config, run, log=logs[0], HELD_BY=str(go))
    processes = [first]
    try:
        wait_for((run / "run.lock").exists, first, log=logs[0])
        owner = json.loads((run / "run.lock").read_text())
        second = train_processes.start(config, run, "--seed", "5", log=logs[1])
        processes.append(second)
        assert second.wait(timeout=300) == 2, logs[1].read_text()
        message = logs[1].read_text().splitlines()[-1]
        assert message.startswith(f"error: run folder {run} is in use by process {first.pid} on {owner['host']} ")
        assert owner["started"] in message
        assert "Traceback" not in logs[1].read_text()

        wait_for(lambda: len(read_metrics(run / "metrics.jsonl")) == 5, first, log=logs[0])
        first.send_signal(signal.SIGTERM)  # as a scheduler does before it takes the machine away
        wait_for(lambda: "finishing this step and saving" in logs[0].read_text(), first, log=logs[0])
        go.touch()
        assert first.wait(timeout=300) == INTERRUPTED == 75, logs[0].read_text()
        assert "run the same command again to resume" in logs[0].read_text()
        assert sorted(path.name for path in run.iterdir()) == [
            "checkpoints",
            "config.json",
            "flight",
            "metrics.jsonl",
            "report.html",
        ]

        again = train_processes.start(config, run, log=logs[2])
        processes.append(again)
        assert again.wait(timeout=300) == 0, logs[2].read_text()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == list(range(1, 13))
    assert json.loads((run / "config.json").read_text())["config"]["seed"] == 0
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "config.json",
        "flight",
        "metrics.jsonl",
        "model",
        "report.html",
    ]
