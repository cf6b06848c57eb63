"""Runs compared: positions on the three axes, prices, scores, differences, and the mistakes of the command."""

import functools
import html
import math
import re

import pytest
from support.report_runs import HOSTILE, SCORES, long_log
from support.run_folders import config_of, metric_line, write_run

from clipa_eqx.cli import run
from clipa_eqx.flops import step_flops
from clipa_eqx.programs.compare_runs import main, run_names, run_prices
from clipa_eqx.reports.comparison import ComparedRun, compared_charts, comparison_page, differing_fields

LINES = [
    metric_line(step, time=0, images_per_second=80.0, images_per_second_per_device=20.0, seconds_per_step=seconds)
    for step, seconds in ((1, 10.0), (2, 10.0), (10, 5.0))
]


def run_of(name="a", *, lines=LINES, price=None, **fields):
    return ComparedRun(name=name, config=config_of(**fields), lines=lines, price=price)


def test_positions_are_samples_operations_and_dollars():
    """60 s on 4 devices at 3 dollars an hour are 0.2 dollars."""
    one = run_of(price=3.0)
    flops = step_flops(one.config.model, batch_size=8).total
    assert one.samples() == [8.0, 16.0, 80.0]
    assert one.operations() == [flops, 2 * flops, 10 * flops]
    assert one.device_hours() == pytest.approx([40 / 3600, 80 / 3600, 240 / 3600])
    assert one.dollars() == pytest.approx([3 * 40 / 3600, 3 * 80 / 3600, 0.2])
    assert run_of().dollars() is None


def test_a_log_without_devices_has_no_price():
    old = [{name: value for name, value in line.items() if not name.endswith("per_device")} for line in LINES]
    one = run_of(lines=old, price=3.0)
    assert one.device_hours() is None
    assert one.dollars() is None
    page = comparison_page([one, run_of("b", price=3.0)])
    assert "<td>a<td>10<td>80" in page
    assert "<td>not logged<td>no price</tr>" in page


def test_each_run_is_a_curve_of_each_chart_over_each_axis():
    runs = [run_of(price=1.0), run_of("b", price=2.0, batch_size=16)]
    for name, places in (
        ("samples", ComparedRun.samples),
        ("FLOPs", ComparedRun.operations),
        ("dollars", ComparedRun.dollars),
    ):
        charts = {chart.title: chart for chart in compared_charts(runs, name, places)}
        assert set(charts) == {"loss, nats", "accuracy in the batch, %", "learning rate", "images/s"}
        chart = charts["loss, nats"]
        assert chart.x_name == name
        assert {c.name: list(c.points) for c in chart.curves} == {
            one.name: list(zip(places(one), (4.0, 2.0, 0.4), strict=True)) for one in runs
        }
        assert chart.x_span == (min(places(one)[0] for one in runs), max(places(one)[-1] for one in runs))


def test_a_run_without_a_price_has_no_curve_over_dollars_and_the_others_keep_their_colors():
    runs = [run_of(), run_of("b", price=2.0)]
    curves = compared_charts(runs, "dollars", ComparedRun.dollars)[0].curves
    assert [(curve.name, len(curve.points)) for curve in curves] == [("a", 0), ("b", 3)]
    page = comparison_page(runs)
    losses = re.findall(r'aria-label="loss, nats">.*?</svg>', page)
    colors = [re.findall(r'd="M[^"]*L[^"]*" fill="none".*?var\(--(curve-\d)\)', one) for one in losses]
    assert colors == [["curve-1", "curve-2"], ["curve-1", "curve-2"], ["curve-2"]]
    assert "over dollars" in page
    assert "over dollars" not in comparison_page([run_of(), run_of("b")])


def test_scores_of_all_suites_have_their_own_charts_and_the_best_is_bold():
    better = long_log(steps=2000)
    worse = [{k: v - 0.01 if k in SCORES and not k.endswith("loss") else v for k, v in line.items()} for line in better]
    worse = [{k: v + 1 if k == "contrastive/coco/loss" else v for k, v in line.items()} for line in worse]
    runs = [run_of("worse", lines=worse), run_of("better", lines=better)]
    titles = [chart.title for chart in compared_charts(runs, "samples", ComparedRun.samples)]
    assert len(set(titles)) == len(titles)
    assert {"top5, zero-shot on imagenet_val, %", "recall@5, retrieval on coco, text to image, %"} <= set(titles)
    assert {"contrastive on coco, loss, nats", "5 shots, few-shot on a_record_folder_with_a_long_name, %"} <= set(
        titles
    )
    rows = re.findall(r"<tr><td>([^<]*)<td>([^<]*)<td><b>([^<]*)</b></tr>", comparison_page(runs))
    assert len(rows) == sum("seed" not in key for key in SCORES)  # the second is the best in each row


def test_a_score_that_one_run_lacks_is_empty():
    runs = [run_of(), run_of("b", lines=[{**line, "zero_shot/x/top1": 0.5} for line in LINES])]
    assert "<tr><td>top-1<td><td>50.00 %</tr>" in comparison_page(runs)


def test_the_fields_that_differ_are_listed():
    runs = [run_of(steps=10), run_of("b", steps=20, seed=3), run_of("c", steps=20)]
    assert differing_fields(runs) == {"duration/steps": ["10", "20", "20"], "seed": ["0", "3", "0"]}
    assert "<tr><td>seed<td>0<td>3<td>0</tr>" in comparison_page(runs)
    assert "<p>None.</p>" in comparison_page([run_of(), run_of("b")])


def test_different_batch_sizes_are_pointed_out():
    said = "The runs have different batch sizes"
    assert said in comparison_page([run_of(), run_of("b", batch_size=16)])
    assert said not in comparison_page([run_of(), run_of("b")])


def test_numbers_that_are_not_finite_are_left_out():
    bad = [{**LINES[0], "loss": math.nan, "images_per_second": math.inf}, *LINES[1:]]
    page = comparison_page([run_of(lines=bad, price=1.0), run_of("b")])
    assert not re.search(r"\b(nan|inf)\b", page)


def test_names_are_escaped():
    page = comparison_page([run_of(HOSTILE), run_of("b", seed=1)])
    assert "<script" not in page
    assert html.escape(HOSTILE) in page


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", config_of(), LINES)
    write_run(tmp_path / "b", config_of(seed=1), LINES)
    write_run(tmp_path / "old" / "a", config_of(seed=2), LINES)
    write_run(tmp_path / "empty", config_of(), [])
    (tmp_path / "plain").mkdir()
    (tmp_path / "taken.html").mkdir()
    return tmp_path


def test_the_command_writes_the_page(folders, capsys):
    main(["a", "old/a", "b"])
    assert capsys.readouterr().out == "3 runs compared in compare.html\n"
    page = (folders / "compare.html").read_text()
    assert re.findall(r"<tr><td>([^<]*)<td>10<td>80<td>", page) == ["a", "old/a", "b"]
    assert "dollars" not in page
    main(["a", "b", "--out", "x/y.html", "--dollars-per-device-hour", "3", "--dollars-per-device-hour", "a=6"])
    assert re.findall(r"<td>([\d.]+)</tr>", (folders / "x" / "y.html").read_text())[:2] == ["0.40", "0.20"]


def test_prices_are_for_all_runs_or_for_one(folders):
    paths = [folders / "a", folders / "b"]
    prices = functools.partial(run_prices, folders=paths, names=["a", "b"])
    assert prices([]) == {}
    assert prices(["2"]) == {"a": 2.0, "b": 2.0}
    assert prices(["a=1", "2"]) == prices(["2", "a=1"]) == {"a": 1.0, "b": 2.0}
    assert prices([f"{folders / 'b'}/=0.5"]) == {"b": 0.5}
    assert run_names([folders / "a", folders / "b"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["a"], "a is a single run; give at least two run folders to compare"),
        (["a", "b", "a"], "a is given twice; name each run once"),
        (["a", "b", "./b/../a"], "b/../a is given twice, which is also a; name each run once"),
        (["a", "plain"], "plain is a folder that clipa_eqx did not write; expected a run folder"),
        (["a", "nowhere"], "nowhere does not exist; expected a run folder"),
        (["a", "empty"], "empty has no metrics yet; try again after its first steps, or leave it out"),
        (["a", "b", "--out", "c.png"], "--out is c.png; give a name that ends in .html"),
        (["a", "b", "--out", "taken.html"], "taken.html cannot be written ("),
        (["a", "b", "--dollars-per-device-hour", "much"], "--dollars-per-device-hour is 'much'; give a price such as"),
        (["a", "b", "--dollars-per-device-hour", "a=-1"], "--dollars-per-device-hour is 'a=-1'; give a price such as"),
        (["a", "b", "--dollars-per-device-hour", "c=1"], "no run is called 'c'; the runs are a, b"),
    ],
)
def test_mistakes_are_one_line(folders, flags, message, capsys):
    assert run(lambda: main(flags)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (folders / "compare.html").exists()
