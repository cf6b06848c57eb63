"""Image processing equals the reference's recorded numbers, within the tolerances of tests/golden/README.md."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from support import goldens

from clipa_eqx.data.images import color as color
from clipa_eqx.data.images.crops import CropBox, central_crop, crop_and_resize, sample_crop_box
from clipa_eqx.data.images.decode import decode_image, image_size, is_jpeg
from clipa_eqx.data.images.evaluation import EvalImageConfig, eval_image, resize_for_eval
from clipa_eqx.data.images.host_pixels import normalize_on_host
from clipa_eqx.data.images.resize import resize, resize_float, resize_small, resize_small_size
from clipa_eqx.models.device_pixels import normalize_on_device

goldens.require("preprocess")

LEVELS_ATOL = 1e-3  # float32 on the 0..255 scale
UNIT_ATOL = 1e-5  # float32 on the 0..1 scale
QUANTILE_ATOL = 0.02

DECODED = goldens.load_npz("preprocess/decoded.npz")
RESIZE = goldens.load_npz("preprocess/resize.npz")
EVAL_OPS = goldens.load_npz("preprocess/eval_ops.npz")
CROPS = goldens.load_npz("preprocess/inception_crop.npz")
SIMCLR = goldens.load_npz("preprocess/simclr.npz")
COLORS = goldens.load_npz("preprocess/simclr_colours.npz")

METHODS = ("bilinear", "area", "nearest", "bicubic", "lanczos3")
ADJUST = {
    "brightness": color.adjust_brightness,
    "contrast": color.adjust_contrast,
    "saturation": color.adjust_saturation,
    "hue": color.adjust_hue,
}


def image_bytes(name: str) -> bytes:
    return goldens.path(f"preprocess/images/{name}").read_bytes()


def assert_levels(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == want.dtype == np.uint8
    assert got.shape == want.shape
    off = np.abs(got.astype(int) - want.astype(int))
    assert off.max() <= 1
    assert (off > 0).mean() <= 0.005


def assert_floats(got: np.ndarray, want: np.ndarray, *, atol: float) -> None:
    assert got.dtype == want.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def parse_size(text: str) -> tuple[int, int]:
    sides = [int(side) for side in text.split("x")]
    return sides[0], sides[-1]


def planes(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(image, -1, 0))


def interleaved(image: np.ndarray) -> np.ndarray:
    return np.moveaxis(image, 0, -1)


@pytest.mark.parametrize("name", sorted(goldens.load_json("preprocess/decoded.json")))
def test_decoding_is_bit_equal(name):
    data = image_bytes(name)
    want = DECODED[f"accurate_dct/{name}" if is_jpeg(data) else name]
    got = decode_image(data)
    np.testing.assert_array_equal(got, want)
    assert got.dtype == np.uint8
    assert image_size(data) == want.shape[:2]


@pytest.mark.parametrize("key", sorted(RESIZE))
def test_resize_matches(key):
    name, kind, size = key.rsplit("/", 2)
    method = next(method for method in METHODS if method in kind)
    source, want = DECODED[name], RESIZE[key]
    options = {"size": parse_size(size), "method": method, "antialias": "noaa" not in kind}
    if want.dtype == np.uint8:
        assert_levels(resize(source, **options), want)
    else:
        source = source.astype(np.float32) if kind.startswith("floatin") else source
        assert_floats(resize_float(source, **options), want, atol=LEVELS_ATOL)


# The two value ranges recorded alone are of an operation that this package does not have.
EVAL_CASES = sorted(key for key in EVAL_OPS if "/value_range_" not in key)


@pytest.mark.parametrize("key", EVAL_CASES)
def test_evaluation_ops_match(key):
    name, kind = key.split("/", 1)
    source, want = DECODED[name], EVAL_OPS[key]
    if kind == "central_crop_list":
        assert_levels(central_crop(source, size=want.shape[:2]), want)
        return
    if squash := re.fullmatch(r"square(\d+)_(\d+)", kind):
        side = int(squash[2])
        before = int(side / (int(squash[1]) / 1000))
        got = central_crop(resize(source, size=(before, before)), size=(side, side))
        # Recorded in -1..1, which nothing here computes: the recording is mapped back to the levels that it came from.
        assert got.dtype == np.uint8
        assert_floats(got.astype(np.float32), (want + np.float32(1)) * np.float32(127.5), atol=LEVELS_ATOL)
        return
    op, side = kind.split("/")[0], int(kind.split("/")[1])
    if op == "resize_small_bilinear":
        assert_levels(resize_small(source, shorter=side, method="bilinear", antialias=True), want)
    elif op == "resize_small_default_area":
        assert_levels(resize_small(source, shorter=side), want)
    else:
        got = resize_for_eval(source, EvalImageConfig(size=(side, side), resize="resize_small_crop"))
        if op == "eval":
            assert_floats(normalize_on_host(got), want, atol=UNIT_ATOL)
            assert_floats(np.asarray(normalize_on_device(jnp.asarray(got))), want, atol=UNIT_ATOL)
        else:
            assert op == "resize_small_crop"
            assert_levels(got, want)


# JPEGs were recorded from the reference's fast DCT; for them decoding and resizing are compared one by one.
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in sorted(DECODED)
        if "/" not in name and not is_jpeg(goldens.path(f"preprocess/images/{name}").read_bytes())
    ],
)
def test_eval_image_joins_decoding_and_resizing(name):
    data = image_bytes(name)
    for key, want in EVAL_OPS.items():
        if key.startswith(f"{name}/resize_small_crop/"):
            assert_levels(eval_image(data, EvalImageConfig(size=want.shape[:2])), want)


def test_resize_small_sizes_are_exact():
    rows = goldens.load_json("preprocess/resize_small_shapes.json")
    column = {name: i for i, name in enumerate(rows["columns"])}
    for row in rows["rows"]:
        got = resize_small_size((row[column["h"]], row[column["w"]]), shorter=row[column["smaller_size"]])
        assert got == (row[column["out_h"]], row[column["out_w"]])


# The keys of decode_jpeg_and_inception_crop hold the reference's fast DCT, which is not ours to reproduce.
CROP_CASES = [case for case in goldens.load_json("preprocess/inception_crop.json") if "op" not in case]


@pytest.mark.parametrize("case", CROP_CASES, ids=lambda case: case["key"])
def test_crop_and_resize_matches(case):
    box = CropBox(*case["begin_yx"], *case["size_hw"])
    side = case["resize_to"]
    got = crop_and_resize(DECODED[case["image"]], box, size=(side, side), antialias=case["antialias"])
    assert_levels(got, CROPS[case["key"]])


STATISTICS = goldens.load_json("preprocess/inception_crop_statistics.json")


@pytest.mark.parametrize("case", STATISTICS, ids=lambda case: f"{case['h']}x{case['w']} from {case['area_min']}")
def test_crop_boxes_have_the_recorded_distribution(case):
    height, width = case["h"], case["w"]
    rng = np.random.default_rng(0)
    # An image that is never cropped costs all attempts each time and has nothing to estimate.
    count = case["n"] if case["full_image_fraction"] < 0.5 else 200
    area = (case["area_min"], case["area_max"])
    boxes = np.array([sample_crop_box(rng, height, width, area=area) for _ in range(count)])
    top, left, tall, wide = boxes.T
    share = tall * wide / (height * width)
    inner = [i for i, q in enumerate(case["quantiles"]) if 0 < q < 1]
    levels = np.array(case["quantiles"])[inner]
    for got, name, unit in (
        (share, "area_fraction", 1),
        (wide / tall, "aspect_w_over_h", 1),
        (tall / height, "height", height),
        (wide / width, "width", width),
    ):
        want = np.array(case[name])[inner] / unit
        np.testing.assert_allclose(np.quantile(got, levels), want, rtol=0, atol=QUANTILE_ATOL, err_msg=name)
    assert abs(share.mean() - case["area_mean"]) < QUANTILE_ATOL
    assert abs((share == 1).mean() - case["full_image_fraction"]) < QUANTILE_ATOL
    for offset, room, name in (
        (top, height - tall, "offset_y_fraction_mean"),
        (left, width - wide, "offset_x_fraction_mean"),
    ):
        if case[name] is not None:
            assert abs((offset[room > 0] / room[room > 0]).mean() - case[name]) < QUANTILE_ATOL


@pytest.mark.parametrize("op", sorted(ADJUST))
def test_color_ops_match(op):
    for i, factor in enumerate(SIMCLR[f"factors/{op}"]):
        got = ADJUST[op](planes(SIMCLR["input_float"]), float(factor))
        assert_floats(interleaved(got), SIMCLR[f"{op}/{i}"], atol=UNIT_ATOL)


def test_gray_matches():
    got = interleaved(color.to_gray(planes(SIMCLR["input_float"])))
    assert_floats(got, SIMCLR["grayscale"], atol=UNIT_ATOL)


@pytest.mark.parametrize("key", sorted(key for key in COLORS if "/" in key))
def test_color_ops_match_on_a_grid_of_colors(key):
    op, factor = key.split("/")
    got = ADJUST[op](planes(COLORS["input"]), float(factor))
    assert_floats(interleaved(got), COLORS[key], atol=UNIT_ATOL)


@pytest.mark.parametrize("case", goldens.load_json("preprocess/simclr.json"), ids=lambda case: case["key"])
def test_the_complete_jitter_matches_with_the_recorded_random_values(case):
    first, *steps, last = case["draws"]
    order, factors = (), {}
    if first[-1] < color.ColorConfig().jitter_probability:
        order = tuple(color.COLOR_OPS[i] for i in steps[0][-1])
        factors = {op: draw[-1] for op, draw in zip(order, steps[1:], strict=True)}
        for op, (_, low, high, _) in zip(order, steps[1:], strict=True):
            spread = case["jitter_strength"] * (0.2 if op == "hue" else 0.8)
            assert (high - low) / 2 == pytest.approx(spread, rel=1e-5)
    gray = last[-1] < color.ColorConfig().gray_probability
    source = SIMCLR["input_uint8"]
    got = color.apply_color(source, color.ColorChange(order=order, gray=gray, **factors))
    assert_levels(got, SIMCLR[case["key"]])
    if not order and not gray:
        np.testing.assert_array_equal(SIMCLR[case["key"]], source)
        assert got is source
