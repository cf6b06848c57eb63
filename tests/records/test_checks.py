"""Checks of one row: order of reasons, texts, images, and that the quick full check finds all damage."""

import io
import random

import numpy as np
import pytest
from PIL import Image
from support import dumps

from clipa_eqx.data.images import decode
from clipa_eqx.data.images.decode import decode_image
from clipa_eqx.errors import DataError
from conversion.records import checks
from conversion.records.checks import CheckedRow, check_row, fit_image
from conversion.records.options import IngestOptions
from conversion.records.rows import Lost, Row
from conversion.records.sources.values import as_captions, as_extra, as_label

GOOD = {"key": "k", "image": dumps.jpeg(0), "captions": ("text",)}


def check(options=None, *, labeled=False, **changes):
    row = Row(**{**GOOD, **changes})
    return check_row(row, options=options or IngestOptions(), labeled=labeled)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key": b"caf\xe9"}, "key is not UTF-8"),
        ({"key": "\udce9"}, "key is not UTF-8"),
        ({"image": None}, "missing image"),
        ({"image": b""}, "missing image"),
        ({"captions": ()}, "missing caption"),
        ({"captions": (None,)}, "missing caption"),
        ({"captions": ("",)}, "empty caption"),
        ({"captions": (b" \n\t",)}, "empty caption"),
        ({"captions": (b"caf\xe9",)}, "caption is not UTF-8"),
        ({"captions": ("\udce9",)}, "caption is not UTF-8"),
        ({"image": b"no image"}, "undecodable image"),
        ({"image": dumps.jpeg(0)[:-100]}, "undecodable image"),
        ({"image": b"no image", "captions": ("",)}, "empty caption"),
    ],
)
def test_the_first_reason_that_applies_is_given(changes, reason):
    lost = check(**changes)
    assert isinstance(lost, Lost)
    assert (lost.reason, lost.count) == (reason, 1)
    lost.key.encode()  # it goes to a JSON file


def test_captions_are_kept_as_written():
    kept = check(captions=("  two  words ", b"caf\xc3\xa9", "", None))
    assert isinstance(kept, CheckedRow)
    assert kept.record.captions == ("  two  words ", "café")
    assert kept.captions_lost == ("empty caption", "missing caption")


def test_labeled_rows_need_a_label_and_no_caption():
    assert check(labeled=True, captions=(), labels=(3,)).record.label == 3
    assert check(labeled=True, captions=("text",), labels=(3,)).record.captions == ("text",)
    assert check(labeled=True, captions=("text",)).reason == "missing label"


def test_an_image_with_too_many_pixels_is_distinct_from_a_damaged_one(monkeypatch):
    for module in (decode, checks):
        monkeypatch.setattr(module, "MAX_PIXELS", 100)
    lost = check()
    assert (lost.reason, lost.detail) == ("too many pixels", "24 x 16")


def test_the_header_check_leaves_pixels_alone():
    cut = dumps.jpeg(0)[:-100]
    assert fit_image(cut, options=IngestOptions(validate="header")) == cut
    assert fit_image(cut, options=IngestOptions(validate="full")).reason == "undecodable image"
    assert fit_image(b"no image", options=IngestOptions(validate="header")).reason == "undecodable image"


def damaged_jpegs():
    draw = random.Random(0)
    images = [
        dumps.jpeg(1, width=75, height=50),
        *(dumps.odd_images()[n] for n in ("cmyk.jpg", "odd_422_progressive.jpg")),
    ]
    for image in images:
        yield image
        for _ in range(60):
            data = bytearray(image)
            if draw.random() < 0.3:
                del data[draw.randrange(2, len(data)) :]
            else:
                for _ in range(draw.choice((1, 1, 4))):
                    data[draw.randrange(len(data))] = draw.randrange(256)
            yield bytes(data)


def test_the_full_check_refuses_what_decoding_refuses():
    """It computes 1/64 of the pixels of a JPEG, but has to find all that the whole image would show."""
    refused = kept = 0
    for data in damaged_jpegs():
        try:
            decode_image(data)
            expected = True
        except DataError:
            expected = False
        assert (fit_image(data, options=IngestOptions()) == data) is expected
        refused, kept = refused + (not expected), kept + expected
    assert min(refused, kept) > 20


@pytest.mark.parametrize(("width", "height", "expected"), [(400, 100, (16, 64)), (100, 401, (64, 16)), (64, 64, None)])
def test_the_longer_side_is_brought_to_the_size_wanted(width, height, expected):
    data = dumps.jpeg(0, width=width, height=height)
    fitted = fit_image(data, options=IngestOptions(max_side=64))
    assert fitted == data if expected is None else decode_image(fitted).shape == (*expected, 3)


def test_making_smaller_by_way_of_the_reduced_transform_looks_like_the_full_way():
    """Saturated noise is the worst case; 1.4 levels were measured."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    file = io.BytesIO()
    small.resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    fitted = decode_image(fit_image(file.getvalue(), options=IngestOptions(max_side=128))).astype(int)
    whole = Image.fromarray(decode_image(file.getvalue())).resize((128, 96), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    whole.save(encoded, "JPEG", quality=95, subsampling="4:2:0")
    assert np.abs(fitted - decode_image(encoded.getvalue()).astype(int)).mean() < 2


def test_the_same_image_always_gives_the_same_bytes_and_quality_is_heeded():
    data = dumps.jpeg(0, width=300, height=200)
    one, two, low = (
        fit_image(data, options=IngestOptions(max_side=100, jpeg_quality=quality)) for quality in (95, 95, 50)
    )
    assert one == two
    assert len(low) < len(one)


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        (None, (None,)),
        ("a", ("a",)),
        (b"a", (b"a",)),
        (["a", None, "b"], ("a", None, "b")),
        ([{"raw": "a", "tokens": ["a"]}, {"caption": "b"}], ("a", "b")),
        (7, ("7",)),
        ([], ()),
    ],
)
def test_captions_come_in_several_forms(value, captions):
    assert as_captions(value) == captions


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (3, 3),
        (b"3", 3),
        ("12\n", 12),
        (3.0, 3),
        (-1, None),
        (None, None),
        ("cat", "cat"),
        (b"cat\n", "cat"),
        (0.5, None),
    ],
)
def test_labels_are_whole_numbers(value, label):
    assert as_label(value) == label


@pytest.mark.parametrize(
    ("value", "extra"),
    [
        (b"text", "text"),
        (b"\xff", b"\xff"),
        ("\udce9", "\\udce9"),
        (1.5, 1.5),
        (2**70, str(2**70)),
        ([1, {"a": None}], '[1, {"a": null}]'),
        (None, None),
    ],
)
def test_extra_values_are_plain(value, extra):
    assert as_extra(value) == extra
