"""Progress: a bar that is redrawn on a terminal, and whole lines with count, rate and time left in a log."""

import logging
import os
import re
import subprocess
import sys
import termios
import time

import pytest
from support.paths import ROOT

from clipa_eqx import progress
from clipa_eqx.progress import progress_bar, waiting

SHOW = """
import sys, time
from clipa_eqx import cli, progress
cli.set_up_logging()
progress.FIRST_LINE, progress.LINE_EVERY = 0.0, 0.05
with progress.progress_bar(what="scoring", total=8, unit="image", delay=0.0) as bar:
    for _ in range(8):
        time.sleep(0.03)
        bar.update()
"""


@pytest.fixture
def lines_at_once(monkeypatch):
    """A log that is no terminal, in which each update is a line."""
    monkeypatch.setattr(progress, "FIRST_LINE", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"what": "scoring", "total": 3, "unit": "image"}, r"scoring: 1/3 images \(33 %\), .*image(/s)?, .* left"),
        ({"what": "encoding", "total": 3, "unit": "batch"}, r"encoding: 1/3 batches \(33 %\), .*batch(/s)?, .* left"),
        ({"what": "", "total": 3, "unit": "step"}, r"1/3 steps \(33 %\), .*step(/s)?, .* left"),
        ({"what": "list", "total": None, "unit": "file"}, r"list: 1 files, .*file(/s)?"),
        ({"what": "list", "total": 0, "unit": "file"}, r"list: 1 files, .*file(/s)?"),
        ({"what": "export", "total": 3000, "unit": "B"}, r"export: 1\.00/3\.00k \(0 %\), .*B(/s)?, .* left"),
    ],
)
def test_a_line_has_count_rate_and_time_left(arguments, expected, lines_at_once, caplog):
    with caplog.at_level(logging.INFO), progress_bar(**arguments) as bar:
        time.sleep(0.01)
        bar.update()
        line = caplog.records[-1].getMessage()
    assert re.fullmatch(expected, line), line


def test_a_bar_within_another_one_gives_whole_lines_too(lines_at_once, caplog):
    with caplog.at_level(logging.INFO), progress_bar(what="outer", total=2, unit="probe") as outer:
        with progress_bar(what="inner", total=2, unit="step") as inner:
            inner.update()
            inner.update()
        outer.update()
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("inner: ") for line in lines)
    assert all(re.match(r"(inner|outer): \d/2", line) for line in lines), lines


@pytest.mark.parametrize("is_iterated", [False, True], ids=["update", "iterate"])
def test_the_first_line_comes_early_and_the_next_ones_at_long_intervals(is_iterated, monkeypatch, caplog):
    monkeypatch.setattr(progress, "FIRST_LINE", 0.05)
    monkeypatch.setattr(progress, "LINE_EVERY", 1000.0)
    with caplog.at_level(logging.INFO):
        if is_iterated:
            for _ in progress_bar(range(12), total=12, unit="step"):
                time.sleep(0.02)
        else:
            with progress_bar(total=12, unit="step") as bar:
                for _ in range(12):
                    time.sleep(0.02)
                    bar.update()
    first, last = (record.getMessage().split()[0] for record in caplog.records)
    assert 1 < int(first.split("/")[0]) < 12
    assert last == "12/12"


def test_short_work_leaves_no_line_in_a_log(caplog):
    with caplog.at_level(logging.INFO):
        assert list(progress_bar(iter("abc"), what="read", total=3, unit="part")) == ["a", "b", "c"]
    assert caplog.records == []


def test_a_disabled_bar_is_silent(lines_at_once, caplog):
    with caplog.at_level(logging.INFO), progress_bar(total=3, unit="step", disable=True) as bar:
        bar.update()
    assert caplog.records == []


def test_work_of_unknown_length_is_reported_until_it_ends(caplog):
    with caplog.at_level(logging.INFO), waiting("compiling", first=0.02, every=0.02):
        deadline = time.monotonic() + 20
        while len(caplog.records) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    seen = len(caplog.records)
    assert seen >= 2
    assert {record.getMessage() for record in caplog.records} == {"compiling: 0 s so far"}
    time.sleep(0.1)
    assert len(caplog.records) == seen


def test_work_that_fails_is_no_longer_reported(caplog):
    with caplog.at_level(logging.INFO), pytest.raises(ZeroDivisionError), waiting("compiling", first=60.0):
        1 / 0  # noqa: B018
    assert caplog.records == []


def test_a_log_file_gets_whole_lines():
    done = subprocess.run([sys.executable, "-c", SHOW], cwd=ROOT, capture_output=True, timeout=60, check=True)
    assert b"\r" not in done.stderr
    lines = done.stderr.decode().splitlines()
    assert len(lines) >= 2
    assert all(re.match(r"\d\d:\d\d:\d\d I clipa_eqx\.progress: scoring: \d/8 images", line) for line in lines), lines


def test_a_terminal_gets_a_bar_that_is_redrawn():
    outer, inner = os.openpty()
    termios.tcsetwinsize(inner, (24, 80))
    subprocess.run([sys.executable, "-c", SHOW], cwd=ROOT, stderr=inner, timeout=60, check=True)
    os.close(inner)
    written = os.read(outer, 100_000)
    os.close(outer)
    assert b"\rscoring: 100%" in written
    assert b"images (" not in written
