"""The page of a search in a real browser: nothing is wider than the page, light and dark, on a phone and a desktop."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from support import chromium

from clipa_eqx.errors import DataError
from clipa_eqx.reports.gallery import Card, Results, gallery


def jpeg(width, height, *, orientation=1):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2] = (200, 60, 60)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    return file.getvalue()


def unreadable():
    raise DataError("gone")


def results():
    name = "a/folder/with_a_name_that_is_rather_long_and_has_no_place_to_break/" + "x" * 60 + ".jpg"
    cards = [
        Card(name=name, score=0.31, image=lambda: jpeg(900, 300)),
        Card(name="tall.jpg", score=0.3, image=lambda: jpeg(200, 1200)),
        Card(name="gone.jpg", score=0.2, image=unreadable),
        Card(name="broken.jpg", score=0.1, image=lambda: b"no image"),
        Card(name="line 7", score=0.05, image=None, words="a text " * 20),
    ]
    return [
        Results(query="a red bicycle " * 8, query_image=None, cards=cards),
        Results(query="q.jpg", query_image=jpeg(640, 480), cards=cards),
    ]


def test_images_that_are_gone_or_broken_leave_a_card_and_rotated_ones_are_upright(caplog):
    page = gallery(results(), title="<title>", about="about")
    assert page.count("no preview") == 4
    assert page.count("<li>") == 10
    assert "&lt;title&gt;" in page
    assert "no thumbnail of gone.jpg: gone" in caplog.text
    turned = gallery(
        [
            Results(
                query="q",
                query_image=None,
                cards=[Card(name="r", score=1.0, image=lambda: jpeg(300, 100, orientation=6))],
            )
        ],
        title="t",
        about="a",
    )
    content = base64.b64decode(re.search(r"base64,([^\"]+)", turned)[1])
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (100, 300)


@pytest.mark.slow
@pytest.mark.skipif(chromium.PROGRAM is None, reason="needs chromium (Debian: apt install chromium)")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits(width, dark, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(gallery(results(), title="a title", about="what was searched"), encoding="utf-8")
    found = chromium.measured(page, width=width, dark=dark, folder=tmp_path)
    assert found["dark"] is dark
    assert found["wide"] == []
    assert found["width"] <= found["window"] <= width
