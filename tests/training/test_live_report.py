"""The report that training writes: its states, resumed runs, how seldom it is written; it never stops a run."""

import errno
import itertools
import logging
import os
import re
import signal
import time
from unittest import mock

import jax
import pytest
from support import tiny_runs
from support.run_folders import config_of, metric_line

from clipa_eqx.durations import Duration, RunLength
from clipa_eqx.errors import DataError, NonFiniteError
from clipa_eqx.evals.retrieval import RetrievalConfig
from clipa_eqx.reports.run_page import RunAbout
from clipa_eqx.reports.short_text import short_number
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.training import live_report
from clipa_eqx.training.inputs import open_sources
from clipa_eqx.training.live_report import LiveReport, end_state, run_samples
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.reporting import Reports
from clipa_eqx.training.stopping import Interrupted

pytestmark = pytest.mark.usefixtures("quick_compile")

STEPS = 12


def config_of_run(**fields):
    # The steps of other tests, so that their compiled step serves here too.
    return tiny_runs.run_config(duration=Duration(steps=STEPS), **fields)


def state_of(page):
    kind, words = re.search(r'class="state (\w+)">\w+</span> (.*?)</p>', page).groups()
    return kind, words


def about(**fields):
    return RunAbout(**{"name": "mine", "config": config_of(), "facts": [], "samples": "none", **fields})


def report(folder, *, clock=lambda: 0.0, lines=()):
    return LiveReport(folder, about, lines, clock=clock)


@pytest.fixture
def pages(monkeypatch):
    """Every page that is written, in order."""
    found = []
    write = live_report.write_text
    monkeypatch.setattr(live_report, "write_text", lambda path, text: (found.append(text), write(path, text)))
    return found


def test_training_writes_the_report_of_a_finished_run_on_one_device(tmp_path, pages):
    """The suite that is scored at the end, the last line of the log, samples, facts of the machine."""
    retrieval = (RetrievalConfig(data=str(tiny_runs.folder() / "records"), batch_size=64),)
    tiny_runs.train_on_one_device(config_of_run(retrieval=retrieval), tmp_path / "mine")
    first, last = pages[0], pages[-1]
    assert state_of(first) == ("training", "no step is done yet")
    assert "<meta http-equiv=refresh" in first
    assert (tmp_path / "mine" / "report.html").read_text() == last
    assert state_of(last) == ("finished", "the last step is done, and the model is written")
    assert "<meta http-equiv=refresh" not in last
    line = read_metrics(tmp_path / "mine" / "metrics.jsonl")[-1]
    assert f"<dt>step</dt><dd>{STEPS}<span>of {STEPS} (100.0 %)" in last
    assert f"<dt>loss</dt><dd>{short_number(line['loss'])} nats" in last
    assert f"{line['input_bound_percent']:.1f} % in the last line" in last
    score = line["retrieval/records/image_to_text_recall@5"]
    assert f"<td>image to text, recall@5<td>{100 * score:.2f} %<td>{STEPS}</tr>" in last
    assert "<tr><td>devices<td>1 x cpu</tr><tr><td>mesh<td>data 1, fsdp 1, tensor 1</tr>" in last
    assert last.count("data:image/png;base64,") == live_report.SAMPLES
    assert all(text.count("data:image/png;base64,") == live_report.SAMPLES for text in pages)


def test_an_interrupted_run_says_so_and_the_resumed_one_has_its_history(tmp_path):
    finish = Reports.finish

    def stop_after_step_3(self, numbers, **rest):
        finish(self, numbers, **rest)
        if numbers.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with mock.patch.object(Reports, "finish", stop_after_step_3), pytest.raises(Interrupted):
        tiny_runs.train_on_one_device(config_of_run(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert state_of(page)[0] == "interrupted"
    assert f"stopped after step 4 of {STEPS} and saved; run the same command again to resume" in state_of(page)[1]
    tiny_runs.train_on_one_device(config_of_run(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert state_of(page)[0] == "finished"
    curve = re.search(r'aria-label="loss, nats">.*?<path d="M([^"]*)" fill="none"', page)[1]
    assert len(curve.split("L")) == STEPS


def test_a_run_that_ends_with_an_error_says_which(tmp_path):
    config = config_of_run()
    finish = Reports.finish

    def spoil(self, numbers, **rest):
        if numbers.step == 2:
            numbers = numbers._replace(metrics={**numbers.metrics, "loss": jax.numpy.asarray(float("nan"))})
        finish(self, numbers, **rest)

    with mock.patch.object(Reports, "finish", spoil), pytest.raises(NonFiniteError):
        tiny_runs.train_on_one_device(config, tmp_path)
    kind, words = state_of((tmp_path / "report.html").read_text())
    assert kind == "stopped"
    assert words.startswith("step 2 gave loss=nan")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (None, "finished", "the last step is done"),
        (Interrupted("saved"), "interrupted", "saved"),
        (DataError("record 7 is damaged"), "stopped", "record 7 is damaged"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt; the same train command resumes"),
        (OSError("a\nb"), "stopped", "OSError: a; the same train command resumes"),
    ],
)
def test_the_last_page_names_the_end(error, kind, words, tmp_path):
    report(tmp_path).close(error)
    found = state_of((tmp_path / "report.html").read_text())
    assert found[0] == kind == end_state(error).kind
    assert found[1].startswith(words)


def test_writing_takes_at_most_one_percent_of_the_time(tmp_path, monkeypatch):
    """A write takes 2 s here, so the next one is due 198 s later; a quick one is due after 10 s."""
    now, written, cost = [0.0], [], [2.0]

    def write(path, text):
        written.append(now[0])
        now[0] += cost[0]

    monkeypatch.setattr(live_report, "write_text", write)
    live = report(tmp_path, clock=lambda: now[0])
    for step in range(1, 1001):
        now[0] += 1.0
        live.add(step, metric_line(step, time=0))
    total = now[0]
    assert (len(written) - 1) * 2.0 / total <= 0.01  # the first page is written before any step
    assert [b - a for a, b in itertools.pairwise(written)] == [200.0] * (len(written) - 1)
    cost[0] = 0.001
    del written[:]
    for step in range(1001, 1500):
        now[0] += 1.0
        live.add(step, metric_line(step, time=0))
    assert min(b - a for a, b in itertools.pairwise(written)) >= 10.0
    assert len(written) > 20
    live.close(None)  # at once, whatever the clock says
    assert written[-1] == now[0] - 0.001


def test_a_page_that_cannot_be_written_is_one_warning(tmp_path, monkeypatch, caplog):
    def refuse(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(live_report, "write_text", refuse)
    tiny_runs.train_on_one_device(config_of_run(), tmp_path)
    warnings = [record.message for record in caplog.records if "report.html" in record.message]
    assert warnings == [
        f"{tmp_path / 'report.html'} cannot be written (No space left on device); training continues without it"
    ]
    assert not (tmp_path / "report.html").exists()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == STEPS


@pytest.mark.parametrize("part", ["run_page", "about", "log"])
def test_a_page_that_cannot_be_drawn_is_one_warning(part, tmp_path, monkeypatch, caplog):
    def fail(*args, **rest):
        raise ValueError("a mistake of ours")

    if part == "run_page":
        monkeypatch.setattr(live_report, "run_page", fail)
    if part == "log":
        monkeypatch.setattr(live_report.ShortLog, "add", fail)
    live = LiveReport(tmp_path, fail if part == "about" else about, ())
    live.add(1, metric_line(1, time=0))
    live.close(None)
    [warning] = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "(ValueError: a mistake of ours); training continues without it" in warning
    assert [path.name for path in tmp_path.iterdir()] == (["report.html"] if part == "log" else [])


def test_samples_that_cannot_be_read_are_a_sentence(monkeypatch):
    def refuse(*args, **rest):
        raise DataError("record 3 is damaged")

    config = config_of_run()
    tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
    assert len(run_samples(config, open_sources(config), tokenizer)) == live_report.SAMPLES
    monkeypatch.setattr(live_report, "read_samples", refuse)
    found = run_samples(config, open_sources(config), tokenizer)
    assert found == "The samples cannot be shown: record 3 is damaged"


def test_only_process_0_writes(tmp_path, monkeypatch):
    run = RunLength(total_steps=STEPS)
    for process, files in ((1, []), (0, ["metrics.jsonl", "report.html"])):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        with Reports(config_of(), tmp_path, run, start=0, devices=1, page=lambda lines: report(tmp_path, lines=lines)):
            pass
        assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_a_long_log_is_shortened(tmp_path, monkeypatch, pages):
    """A chart gets few lines, the numbers at the top are of all."""
    monkeypatch.setattr(live_report, "_MOST_LINES", 40)
    lines = [metric_line(n, time=n, seconds_per_step=1.0 + (n % 3)) for n in range(1, 1001)]
    live = report(tmp_path, lines=lines)
    assert len(live._log.lines) <= 41
    assert "<dt>time in steps</dt><dd>33 min<" in pages[0]  # 2,000 s
    live.add(1001, metric_line(1001, time=1001, seconds_per_step=400.0))
    live.close(None)
    assert "<dt>time in steps</dt><dd>40 min<" in pages[-1]


def test_a_page_that_is_written_seldom_expects_no_update_earlier(tmp_path, monkeypatch, pages):
    """Writing takes 3 s, so the next page comes 297 s later: one that is 4 minutes old is no sign of a stop."""
    now = [0.0]
    write = live_report.write_text
    monkeypatch.setattr(live_report, "write_text", lambda path, text: (write(path, text), now.append(now[-1] + 3.0)))
    live = report(tmp_path, clock=lambda: now[-1])
    now.append(400.0)
    live.add(1, metric_line(1, time=0, seconds_per_step=1.0))
    assert f'data-quiet="{3 * 297}"' in pages[-1]


def test_opening_the_reports_is_no_time_of_training(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def page(lines):
        now[0] += 60.0
        return report(tmp_path, lines=lines)

    with Reports(config_of(), tmp_path, RunLength(total_steps=STEPS), start=0, devices=1, page=page) as reports:
        now[0] += 2.0
        assert reports.throughput.rates(1)["seconds_per_step"] == 2.0


def test_a_run_that_starts_late_logs_its_first_step(tmp_path):
    """The first line says where the run began, also after it was resumed."""
    run = RunLength(total_steps=500)
    with Reports(config_of(), tmp_path, run, start=203, devices=1) as reports:
        assert [step for step in range(204, 231) if reports.is_logged(step)] == [204, 210, 220, 230]
        about = {**reports.about(), "config": {}}
    with Reports(config_of(), tmp_path, run, start=213, devices=1, before=about) as reports:
        assert [step for step in range(214, 231) if reports.is_logged(step)] == [220, 230]
