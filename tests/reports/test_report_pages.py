"""Reports in a real browser: nothing is wider than the page, nothing is blank, and dark pages are dark.

Set ``CLIPA_EQX_SCREENSHOTS`` to a folder to keep the screenshots and look at them.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from support import chromium
from support.report_runs import long_log, photo_config, write_long_run, write_photo_records
from support.run_folders import write_run

from clipa_eqx.programs.compare_runs import main as compare
from clipa_eqx.programs.run_report import write_run_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="needs chromium (Debian: apt install chromium)"),
]

LONG_NAME = "h14_84px_t8_with_a_name_that_is_rather_long"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The report of a run, and a comparison of three, each of its groups of charts as a page."""
    folder = tmp_path_factory.mktemp("pages")
    records = write_photo_records(folder / "records")
    run = write_long_run(folder / LONG_NAME, records, end=13_000)
    write_long_run(folder / "b", records, speed=500.0, seed=1)
    config = photo_config(records, steps=10_000, seed=7, batch_size=16)
    write_run(folder / "c", config, long_log(steps=10_000, speed=300.0, seed=3))
    found = {"report": write_run_report(run, folder / "report.html")}
    runs = [str(folder / name) for name in (LONG_NAME, "b", "c")]
    compare([*runs, "--out", str(folder / "compare.html"), "--dollars-per-device-hour", "3.2"])
    text = (folder / "compare.html").read_text(encoding="utf-8")
    for number, axis in enumerate(("samples", "flops", "dollars")):
        page = folder / f"compare-{axis}.html"
        shown = text.replace("id=axis0 checked>", "id=axis0>").replace(f"id=axis{number}>", f"id=axis{number} checked>")
        assert shown.count(" checked>") == 1
        page.write_text(shown, encoding="utf-8")
        found[page.stem] = page
    return found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["report", "compare-samples", "compare-flops", "compare-dollars"])
def test_a_page_fits_and_is_not_blank(name, width, dark, pages, tmp_path):
    found = chromium.measured(pages[name], width=width, dark=dark, folder=tmp_path)
    assert found["dark"] is dark
    assert found["wide"] == []
    assert found["width"] <= found["window"] <= width
    kept = Path(os.environ.get("CLIPA_EQX_SCREENSHOTS", tmp_path))
    scheme = "dark" if dark else "light"
    levels = chromium.screenshot(
        pages[name],
        width=width,
        height=found["height"],
        dark=dark,
        folder=tmp_path,
        out=kept / f"{name}-{width}-{scheme}.png",
    )
    assert levels.shape == (found["height"], width, 3)
    brightness = levels.mean(axis=2)
    assert bool(np.median(brightness) < 60) is dark
    # Each part of 800 pixels has something on it, and the curves have their colors.
    for top in range(0, found["height"] - 800, 800):
        assert brightness[top : top + 800].std() > 5, top
    curve = np.array([0x58, 0xA6, 0xFF] if dark else [0x1F, 0x6F, 0xB2])
    assert (np.abs(levels.astype(int) - curve).max(axis=2) < 12).sum() > 500


def test_the_measurement_sees_what_is_too_wide(tmp_path):
    page = tmp_path / "wide.html"
    page.write_text("<!doctype html><body style='margin:0'><p class=a style='width:500px'>x</p></body>")
    found = chromium.measured(page, width=390, dark=False, folder=tmp_path)
    assert found["wide"] == ["P a"]
    assert found["width"] == 500
