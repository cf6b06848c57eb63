"""Guards the two forms of a comparison's result: the keys of the JSON, which other programs read, and the lines."""

import json
import os
from pathlib import Path

import pytest

from clipa_eqx.errors import ConversionError
from conversion.compare.report import (
    CompareReport,
    Divergence,
    SideSummary,
    check_destination,
    report_lines,
    write_report,
)

A = SideSummary(name="ours", kind="model folder", notes=())
B = SideSummary(name="theirs.npz", kind="Flax npz", notes=("no tokenizer",))
EQUAL = CompareReport(a=A, b=B, notes=("texts: all equal",), divergences=(), embedding_error={"image": 0.0})
SETTING = Divergence(where="preprocessing", what="pixels differ", causes=(("resize mode", "squash in A"),))
STEPS = ("text/blocks/0/norm1", "text/blocks/0/norm2")
UNEXPLAINED = Divergence(where=STEPS[0], what="error 1", steps=STEPS)
DIFFERENT = CompareReport(a=A, b=B, notes=(), divergences=(SETTING, UNEXPLAINED), embedding_error={})


def test_a_report_without_divergences():
    assert EQUAL.first is None
    assert EQUAL.to_json() == {
        "a": {"name": "ours", "kind": "model folder", "notes": []},
        "b": {"name": "theirs.npz", "kind": "Flax npz", "notes": ["no tokenizer"]},
        "notes": ["texts: all equal"],
        "divergences": [],
        "embedding_error": {"image": 0.0},
        "first": None,
    }
    assert report_lines(EQUAL) == [
        "A  ours (model folder)",
        "B  theirs.npz (Flax npz)",
        "   B: no tokenizer",
        "",
        "texts: all equal",
        "",
        "no difference",
    ]


def test_the_json_lists_divergences_in_order_and_steps_only_for_operations(tmp_path):
    write_report(DIFFERENT, tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    setting = {"where": "preprocessing", "what": "pixels differ", "causes": [["resize mode", "squash in A"]]}
    assert found["divergences"] == [
        setting,
        {"where": STEPS[0], "what": "error 1", "causes": [], "steps": list(STEPS)},
    ]
    assert found["first"] == setting


def test_the_json_replaces_a_former_file_in_one_step(tmp_path):
    (tmp_path / "report.json").write_text("former")
    (tmp_path / "link").hardlink_to(tmp_path / "report.json")
    write_report(EQUAL, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["first"] is None
    assert (tmp_path / "link").read_text() == "former"
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "link"}


def test_the_lines_name_the_first_divergence_and_every_cause():
    assert report_lines(DIFFERENT)[-4:] == [
        "FIRST DIVERGENCE: preprocessing: pixels differ",
        "    cause: resize mode, squash in A",
        "next: text/blocks/0/norm1: error 1",
        "    cause: no known mistake explains it; the weights or tables themselves differ",
    ]


def test_a_report_that_cannot_be_written_is_refused_before_the_comparison(tmp_path):
    check_destination(tmp_path / "report.json")
    with pytest.raises(ConversionError, match="is a folder; name a file"):
        check_destination(tmp_path)
    with pytest.raises(ConversionError, match="there is no folder"):
        check_destination(tmp_path / "none" / "report.json")
    with pytest.raises(ConversionError, match="is not a regular file"):
        check_destination(Path(os.devnull))
    for file in (tmp_path, Path(os.devnull)):
        with pytest.raises(ConversionError, match="cannot be written"):
            write_report(EQUAL, file)
