"""The page of a run: its numbers are those of the log, its text is escaped, and it needs no other file."""

import html
import re

import pytest
from support.report_runs import HOSTILE, SCORES, long_log, photo_config, write_long_run, write_photo_records
from support.run_folders import config_of, metric_line, write_run

from clipa_eqx.cli import run
from clipa_eqx.errors import ConfigError
from clipa_eqx.flops import step_flops
from clipa_eqx.programs import run_report
from clipa_eqx.programs.run_report import run_state, write_run_report
from clipa_eqx.programs.show import main
from clipa_eqx.reports.run_page import FixedParts, RunAbout, RunState, run_page
from clipa_eqx.reports.run_progress import input_bound_share
from clipa_eqx.reports.scores import score_name
from clipa_eqx.reports.short_text import short_number
from clipa_eqx.training.run_lock import run_lock

NOW = 1_000_000.0
EMPTY = "samples are elsewhere"


def page_of(config, lines, *, state="training", name="mine", facts=(), now=NOW, words=""):
    about = RunAbout(name=name, config=config, facts=facts, samples=EMPTY)
    return run_page(FixedParts.of(about), lines, RunState(kind=state, words=words), now=now)


def tiles(page):
    """Value and remark of each number at the top."""
    found = re.findall(r"<dt>(.*?)</dt><dd>(.*?)(?:<span>(.*?)</span>)?</dd>", page)
    return {name: (value, more) for name, value, more in found}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_photo_records(tmp_path_factory.mktemp("data") / "records")


@pytest.fixture(scope="module")
def folder(records, tmp_path_factory):
    """A run of 20,000 steps that ended after 13,000, with scores of all suites."""
    return write_long_run(tmp_path_factory.mktemp("runs") / "mine", records, end=13_000)


@pytest.fixture(scope="module")
def shown(folder):
    return write_run_report(folder, None).read_text(encoding="utf-8")


def test_the_numbers_are_those_of_the_log():
    config = config_of(steps=500)
    lines = [metric_line(step, time=NOW - 2 * (50 - step), seconds_per_step=2.0) for step in (1, 2, 10, 20, 30, 40, 50)]
    lines[-1] |= {"images_per_second": 123.0, "images_per_second_per_device": 61.5, "input_bound_percent": 3.0}
    found = tiles(page_of(config, lines))
    flops = step_flops(config.model, batch_size=8).total
    assert found["step"] == ("50", "of 500 (10.0 %)")
    assert found["samples"] == ("400", "5 epochs")
    assert found["time left"] == ("15 min", "until 1970-01-12 14:01 UTC")
    assert found["time in steps"] == ("2 min", "without scoring and saving")
    assert found["images/s"] == ("123", "61.5 per device")
    assert found["loss"] == ("0.08 nats", "")
    assert found["accuracy in the batch"] == ("50 %", "")
    assert found["operations so far"] == (f"{50 * flops / 1e6:.3g} MFLOPs", f"{flops / 2e6:.3g} MFLOP/s")
    assert "width:10.00%" in page_of(config, lines)


def test_the_input_bound_share_weighs_each_line_with_its_time():
    """Step 1 waits half of 8 s, step 2 none of 2 s, steps 3 to 10 a tenth of 10 s: 5 of 20 s."""
    lines = [
        {"step": 1, "seconds_per_step": 8.0, "input_bound_percent": 50.0},
        {"step": 2, "seconds_per_step": 2.0, "input_bound_percent": 0.0},
        {"step": 10, "seconds_per_step": 1.25, "input_bound_percent": 10.0},
    ]
    assert input_bound_share(lines) == pytest.approx(25.0)
    assert input_bound_share([{"step": 1, "seconds_per_step": 8.0}]) is None
    assert input_bound_share([]) is None
    value, more = tiles(page_of(config_of(), lines))["waiting for input"]
    assert (value, more) == ("25.0 %", "of the time, at most; 10.0 % in the last line")


def test_a_run_that_starts_late_has_only_its_own_operations():
    """A run that took over another one's optimizer starts at its step."""
    lines = [metric_line(step, time=NOW, seconds_per_step=1.0) for step in (1001, 1002, 1010)]
    flops = step_flops(config_of().model, batch_size=8).total
    found = tiles(page_of(config_of(steps=2000), lines))
    assert found["operations so far"][0] == f"{10 * flops / 1e6:.3g} MFLOPs"
    assert found["time in steps"][0] == "10 s"


def test_every_score_of_the_last_line_is_in_the_table(shown):
    last = long_log(steps=20_000, end=13_000)[-1]
    for key in SCORES:
        name = score_name(key)
        row = f"<tr><td>{name.score}<td>{name.text(last[key])}<td>13,000</tr>"
        assert (row in shown) == (not name.is_repeat), key
        assert (f"<td class=group colspan=3>{name.evaluation}" in shown) is True
    assert f"last <b>{short_number(last['loss'])}</b>" in shown  # the curve of the loss ends at the last line
    assert shown.count("<figure class=chart>") == 12


def test_text_of_the_data_is_escaped(shown):
    assert html.escape(HOSTILE) in shown
    assert "<script>alert" not in shown
    assert "<b>a cat" not in shown
    page = page_of(config_of(), [], name=HOSTILE, facts=[(HOSTILE, HOSTILE)], words=HOSTILE)
    assert "<script>alert" not in page
    assert page.count(html.escape(HOSTILE)) == 5  # title, heading, sentence, fact


def test_a_name_that_is_no_utf8_can_be_written(tmp_path):
    folder = write_run(tmp_path / "caf\udce9", config_of(), [metric_line(1, time=NOW)])
    assert "<h1>caf?</h1>" in write_run_report(folder, None).read_text(encoding="utf-8")


def test_the_page_is_one_file_without_any_address(shown):
    assert re.findall(r"(?:src|href)=\"(?!data:image/(?:png|jpeg);base64,)[^\"]*", shown) == []
    assert "://" not in shown.split("<details>")[0]
    assert shown.count("data:image/jpeg;base64,") == 12
    assert len(shown) < 300_000


def test_samples_have_captions_and_what_the_tokenizer_keeps(shown):
    assert re.search(
        r"<p>a photo of a cat and a dog w\d[^<]*</p><p class=tokens>a photo of a cat [^<]* \.\.\.</p>", shown
    )
    assert "photos/000" in shown


def test_only_the_page_of_a_run_that_trains_loads_itself_again():
    config, lines = config_of(steps=500), [metric_line(n, time=NOW + n) for n in (1, 2, 10)]
    assert "<meta http-equiv=refresh content=30>" in page_of(config, lines)
    assert 'data-quiet="180"' in page_of(config, lines)
    slow = [metric_line(n, time=NOW + 60 * n) for n in (1, 2, 10)]
    assert f'data-quiet="{6 * 60 * 10}"' in page_of(config, slow)  # lines come every 10 minutes
    for state in ("finished", "interrupted", "stopped"):
        page = page_of(config, lines, state=state)
        assert "http-equiv" not in page
        assert "data-quiet=" not in page
        assert f'class="state {state}">{state}<' in page


def test_a_run_without_a_line_has_a_page():
    page = page_of(config_of(steps=500), [])
    assert tiles(page)["step"] == ("0", "of 500 (0.0 %)")
    assert "No step is logged yet." in page
    assert EMPTY in page


def test_numbers_that_are_not_finite_do_not_break_the_page():
    lines = [metric_line(1, time=NOW, loss=float("nan"), images_per_second=float("inf"))]
    page = page_of(config_of(), lines)
    assert not {"loss", "images/s"} & set(tiles(page))
    assert "nan" not in page.split("<h2>The run")[0].split("</style>")[1]


@pytest.mark.parametrize(
    ("steps", "saved", "is_training", "kind", "words"),
    [
        (50, (50,), False, "finished", "the last step is done"),
        (500, (), True, "training", ""),
        (500, (), None, "training", "a process of another machine holds the folder"),
        (500, (20, 50), False, "interrupted", "saved after step 50; the same train command resumes it"),
        (500, (20, 40), False, "stopped", "resumes it from step 40"),
        (500, (), False, "stopped", "from the beginning, because there is no checkpoint"),
    ],
)
def test_the_state_is_read_from_the_folder(steps, saved, is_training, kind, words):
    state = run_state(config_of(steps=steps), [metric_line(50, time=0)], saved=saved, is_training=is_training)
    assert state.kind == kind
    assert words in state.words


def test_show_writes_the_report_of_a_run_that_has_none(folder, tmp_path, capsys):
    (folder / "report.html").unlink(missing_ok=True)
    main([str(folder), "--report"])
    assert capsys.readouterr().out == f"report written to {folder / 'report.html'}\n"
    assert "no process trains in this folder" in (folder / "report.html").read_text()
    with run_lock(folder):
        main([str(folder), "--report", str(tmp_path / "a.html")])
    assert 'class="state training"' in (tmp_path / "a.html").read_text()


def test_samples_that_cannot_be_read_are_a_sentence(tmp_path, records):
    config = photo_config(records, steps=10)
    run_folder = write_run(tmp_path / "mine", config_of(steps=10), [])
    page = write_run_report(run_folder, tmp_path / "a.html").read_text()
    assert "The samples cannot be shown: " in page
    assert "<img" not in page
    assert isinstance(run_report._samples(config), list)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--report", "a.txt"], "error: --report is a.txt; give a name that ends in .html"),
        (["--report", "a.html", "--every", "5"], "error: --report writes only the report; leave out"),
        (["--report", "taken.html"], "error: taken.html cannot be written ("),
    ],
)
def test_a_report_that_cannot_be_written_is_an_error(flags, message, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.html").mkdir()
    assert run(lambda: main([str(folder), *flags])) == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_report_of_something_else_is_refused(records):
    with pytest.raises(ConfigError, match="--report is for a run folder"):
        main([str(records), "--report"])
