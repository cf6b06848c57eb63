"""Curves of a run in the terminal and as a file: what is drawn, the progress line, and what `show` does with a run."""

import io
import json
import math
import re
import subprocess
import sys
import time

import pytest
from PIL import Image
from support.paths import ROOT
from support.run_folders import config_of, metric_line, write_run

from clipa_eqx.cli import run
from clipa_eqx.durations import Duration
from clipa_eqx.errors import ConfigError
from clipa_eqx.programs import watch
from clipa_eqx.programs.show import main
from clipa_eqx.programs.terminal_plot import Paper, plot_chart, plot_charts
from clipa_eqx.reports.chart_html import COLORS
from clipa_eqx.reports.curves import Chart, Curve, run_charts
from clipa_eqx.reports.run_progress import progress
from clipa_eqx.training.run_lock import RUN_LOCK, is_training, run_lock

NOW = 1_000_000.0
EPOCHS = config_of(duration=Duration(epochs=20.0))
LINES = [metric_line(step, time=NOW - 2 * (50 - step)) for step in range(10, 60, 10)]


def plot(points, *, width=30, **paper):
    chart = Chart(
        title="t", x_name="step", x_span=(points[0][0], points[-1][0]), curves=(Curve(name="c", points=points),)
    )
    return plot_chart(chart, Paper(**paper), width=width, has_names=False)


def test_a_run_has_charts_of_loss_accuracy_scores_rates_and_speed():
    scores = {"zero_shot/a/top1": 0.25, "zero_shot/a/top5": 0.5, "zero_shot/b c/top1": 0.125}
    lines = [
        metric_line(1, time=0, **{"lr/image/.*": 0.1, "lr/.*": 0.2}),
        metric_line(5, time=0, images_per_second=math.inf, loss=math.nan, **scores),
    ]
    for line in lines:
        del line["lr"]
    charts = {chart.title: {c.name: list(c.points) for c in chart.curves} for chart in run_charts(lines)}
    assert charts == {
        "loss, nats": {"loss": [(1.0, 4.0)]},
        "accuracy in the batch, %": {"accuracy": [(1.0, 1.0), (5.0, 5.0)]},
        "zero-shot on a, %": {"top1": [(5.0, 25.0)], "top5": [(5.0, 50.0)]},
        "zero-shot on b c, %": {"top1": [(5.0, 12.5)]},
        "learning rate": {"image/.*": [(1.0, 0.1)], ".*": [(1.0, 0.2)]},
        "images/s": {"images_per_second": [(1.0, 101.0)]},
    }
    assert {chart.x_span for chart in run_charts(lines)} == {(1.0, 5.0)}
    assert run_charts([]) == []


def test_a_rising_line_goes_from_the_lower_left_to_the_upper_right():
    lines = plot([(0.0, 0.0), (1.0, 8.0)], has_braille=False, height=8)
    field = [line[line.index("|") + 1 :] for line in lines[1:9]]
    assert [row.rstrip() for row in field] == [" " * row.index("*") + "*" * row.count("*") for row in field]
    starts = [row.index("*") for row in field]
    assert starts == sorted(starts, reverse=True)
    assert starts[-1] == 0
    assert field[0].endswith("*")
    assert (lines[1][0], lines[8][0]) == ("8", "0")
    assert lines[0] == f"t{8:>29}"
    assert lines[-1].split() == ["0", "step", "1"]


def test_braille_dots_are_at_their_places():
    """Four dots down and two across a character: a field of one row, with dots at all four heights."""
    [_, row, *_] = plot([(0.0, 0.0), (1.0, 1.0)], width=4 + 3, height=1, has_braille=True)
    assert row.endswith(" ┤⣀⠤⠒⠉")


@pytest.mark.parametrize("paper", [Paper(width=80), Paper(width=71), Paper(width=200, has_braille=False)])
def test_lines_fit_the_terminal(paper):
    lines = [*LINES, metric_line(60, time=NOW, **{f"zero_shot/a/top{k}": k / 7 for k in (1, 5)})]
    text = list(plot_charts(run_charts(lines), paper))
    assert max(map(len, text)) <= paper.width
    assert paper.has_braille or "\n".join(text).isascii()
    two = any("loss" in line and "accuracy" in line for line in text)
    assert two == (paper.width >= 72)
    assert any(re.search(r"top1 14\.29  top5 71\.43", line) for line in text)


def test_constant_single_and_absent_values_are_drawn():
    for points in ([(1.0, 5.0)], [(1.0, 5.0), (2.0, 5.0)], [(1.0, 0.0), (9.0, 0.0)]):
        lines = plot(points)
        assert sum(any("⠀" < character <= "⣿" for character in line) for line in lines) == 1
        assert {len(line) for line in lines} == {30}


STOPPED = "no process trains in this folder: the same train command resumes it"


@pytest.mark.parametrize(
    ("config", "lines", "seconds", "is_training", "expected"),
    [
        (config_of(steps=500), [], 0, True, "no step of 500 is logged yet"),
        (config_of(steps=500), [], 0, False, f"no step of 500 is logged yet; {STOPPED}"),
        (config_of(steps=500), LINES, 4, True, "step 50 of 500 (10 %), about 15 min left, last line 4 s ago"),
        (config_of(steps=500), LINES, 4, None, "step 50 of 500 (10 %), about 15 min left, last line 4 s ago"),
        (config_of(steps=500), LINES, 4, False, f"step 50 of 500 (10 %), last line 4 s ago; {STOPPED}"),
        (config_of(steps=50), LINES, 7200, False, "step 50 of 50, finished 2 h 0 min ago"),
        (
            config_of(steps=500),
            LINES,
            3 * 3600,
            None,
            "step 50 of 500 (10 %), no line for 3 h 0 min: if training has stopped, the same command resumes it",
        ),
        (
            config_of(steps=500),
            LINES,
            3 * 3600,
            True,
            "step 50 of 500 (10 %), no line for 3 h 0 min: the process still runs",
        ),
        # An epoch is 10 steps of 8 pairs. With a single line, the speed is what that line says.
        (EPOCHS, LINES[:1], 0, True, "step 10 of 200 (5 %), last line 80 s ago"),
        (
            EPOCHS,
            [{**LINES[0], "seconds_per_step": 3.0}],
            0,
            True,
            "step 10 of 200 (5 %), about 10 min left, last line 80 s ago",
        ),
        (EPOCHS, [], 0, True, "no step is logged yet"),
    ],
)
def test_progress_says_what_is_done_and_left(config, lines, seconds, is_training, expected):
    assert progress(config, lines, now=NOW + seconds, is_training=is_training) == expected


def test_a_pause_does_not_change_the_time_left():
    """Each step takes 2 s, except for one night."""
    lines = [metric_line(step, time=2 * step + (40_000 if step > 15 else 0)) for step in range(1, 31)]
    assert "about 2 min left" in progress(config_of(steps=90), lines, now=60.0 + 40_000, is_training=True)


def test_a_folder_is_trained_in_while_a_process_holds_its_lock(tmp_path):
    """The lock of a killed process is none, and that of another machine cannot be judged."""
    assert is_training(tmp_path) is False
    with run_lock(tmp_path / "run"):
        assert is_training(tmp_path / "run") is True
        owner = json.loads((tmp_path / "run" / RUN_LOCK.name).read_text())
    assert is_training(tmp_path / "run") is False
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    for changed, expected in (({"pid": int(ended.stdout)}, False), ({"host": "elsewhere"}, None)):
        (tmp_path / RUN_LOCK.name).write_text(json.dumps({**owner, **changed}))
        assert is_training(tmp_path) is expected


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """A run that trains, with half of a line at the end of its log, and another current folder."""
    folder = write_run(tmp_path / "runs" / "mine", config_of(steps=500), LINES)
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"step": 60, "lo')
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(time, "time", lambda: NOW + 4)
    with run_lock(folder):
        yield folder


def contents(folder):
    """The files of a run; the process that trains renews its lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != RUN_LOCK.name}


def test_a_run_is_shown_with_progress_and_curves_while_it_writes(run_folder, capsys):
    before = contents(run_folder)
    main([str(run_folder)])
    out = capsys.readouterr().out
    assert f"{run_folder}: step 50 of 500 (10 %), about 15 min left, last line 4 s ago\n" in out
    assert re.search(r"^loss, nats +0\.08  accuracy in the batch, % +50$", out, flags=re.M)
    assert out.endswith("curves drawn to mine-curves.png\n")
    assert "\x1b" not in out
    assert contents(run_folder) == before
    with Image.open("mine-curves.png") as image:
        assert image.format == "PNG"
        colors = {color for _, color in image.convert("RGB").getcolors(maxcolors=1 << 20)}
    assert {tuple(bytes.fromhex(COLORS[name][0][1:])) for name in ("curve-1", "page")} <= colors


def test_a_run_without_a_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "new", config_of(steps=500), [])
    main(["new"])
    assert f"new: no step of 500 is logged yet; {STOPPED}\n" in capsys.readouterr().out
    (tmp_path / "new" / "metrics.jsonl").unlink()
    main(["new"])
    assert "new: no step of 500 is logged yet; " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_an_image_that_cannot_be_drawn_is_a_line_unless_it_is_named(run_folder, monkeypatch, capsys):
    monkeypatch.chdir(run_folder)
    main(["."])
    assert capsys.readouterr().out.endswith(
        "no image of the curves is drawn: it would be written into the run folder; name a file with --out\n"
    )
    monkeypatch.chdir(run_folder.parent)
    (run_folder.parent / "mine-curves.png").mkdir()
    main(["mine"])
    assert "no image of the curves is drawn: mine-curves.png cannot be written (" in capsys.readouterr().out
    assert run(lambda: main(["mine", "--out", "mine-curves.png"])) == 2
    assert run(lambda: main(["mine", "--out", "curves.bmp"])) == 2
    assert "error: --out is curves.bmp; give a name that ends in .png" in capsys.readouterr().err


def test_without_matplotlib_the_curves_are_in_the_terminal(run_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "clipa_eqx.programs.figure", raising=False)
    main([str(run_folder)])
    out = capsys.readouterr().out
    assert "loss, nats" in out
    assert "needs matplotlib; install it with `pip install matplotlib`" in out.splitlines()[-1]
    with pytest.raises(ConfigError, match="needs matplotlib"):
        main([str(run_folder), "--out", "a.png"])


def test_a_terminal_without_unicode_gets_ascii(run_folder, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    main([str(run_folder), "--out", "x.svg"])
    sys.stdout.flush()
    assert b"*" in raw.getvalue()
    assert (run_folder.parent.parent / "here" / "x.svg").read_text().startswith("<?xml")


def test_every_repeats_the_curves_until_the_run_is_finished(run_folder, monkeypatch, capsys):
    waited = []

    def write_more(seconds):
        waited.append(seconds)
        write_run(run_folder, config_of(steps=500), [*LINES, metric_line(250 * len(waited), time=NOW)])

    monkeypatch.setattr(watch.time, "sleep", write_more)
    main([str(run_folder), "--every", "5"])
    out = capsys.readouterr().out
    assert waited == [5.0, 5.0]
    assert re.findall(r"step (\d+) of 500", out) == ["50", "250", "500"]
    assert "parameters" not in out
    with pytest.raises(ConfigError, match="--every is 0; give seconds"):
        main([str(run_folder), "--every", "0"])


@pytest.mark.parametrize("flags", [["--out", "a.png"], ["--every", "9"]])
def test_curves_of_something_else_are_refused(flags, tmp_path):
    with pytest.raises(ConfigError, match="show the curves of a run folder"):
        main([str(ROOT / "configs" / "quickstart_tune.py"), *flags])
    (tmp_path / "config.json").write_text(json.dumps({"schema": 1, "model": {}}))
    with pytest.raises(ConfigError, match="show the curves of a run folder"):
        main([str(tmp_path), *flags])
