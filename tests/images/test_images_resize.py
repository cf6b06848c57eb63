"""Exact resizing, cropping and normalization: properties that hold for any image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa_eqx.data.images import resize as resize_module
from clipa_eqx.data.images.crops import CropBox, central_box, central_crop, crop_and_resize, sample_crop_box
from clipa_eqx.data.images.host_pixels import IMAGENET_MEAN, IMAGENET_STD, normalize_on_host
from clipa_eqx.data.images.resize import resize, resize_float, resize_small, resize_small_size
from clipa_eqx.errors import ConfigError

METHODS = ("bilinear", "area", "nearest", "bicubic", "lanczos3")
SIDES = st.integers(1, 24)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def dense_bilinear(source: int, out: int) -> np.ndarray:
    """The triangle filter as a matrix, in float64 and independently of the library's code."""
    scale = source / out
    reach = max(scale, 1.0)
    center = (np.arange(out)[:, None] + 0.5) * scale
    weight = np.maximum(0, 1 - np.abs(np.arange(source) + 0.5 - center) / reach)
    return weight / weight.sum(axis=1, keepdims=True)


@settings(max_examples=30, deadline=None)
@given(height=SIDES, width=SIDES, out_height=SIDES, out_width=SIDES)
def test_bilinear_is_the_triangle_filter(height, width, out_height, out_width):
    image = noise(height, width)
    got = resize_float(image, size=(out_height, out_width))
    want = np.einsum("oh,pw,hwc->opc", dense_bilinear(height, out_height), dense_bilinear(width, out_width), image)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-3)


@settings(max_examples=30, deadline=None)
@given(height=SIDES, width=SIDES, method=st.sampled_from(METHODS), antialias=st.booleans())
def test_same_size_is_an_equal_image_and_not_a_view(height, width, method, antialias):
    image = noise(height, width)
    got = resize(image, size=(height, width), method=method, antialias=antialias)
    np.testing.assert_array_equal(got, image)
    assert not np.shares_memory(got, image)


@settings(max_examples=60, deadline=None)
@given(
    height=SIDES, width=SIDES, size=st.tuples(SIDES, SIDES), method=st.sampled_from(METHODS), level=st.integers(0, 255)
)
def test_a_plain_image_stays_plain(height, width, size, method, level):
    image = np.full((height, width, 3), level, np.uint8)
    np.testing.assert_allclose(resize_float(image, size=size, method=method), level, rtol=1e-5)
    np.testing.assert_array_equal(resize(image, size=size, method=method, rounding="nearest"), np.uint8(level))


@settings(max_examples=40, deadline=None)
@given(height=SIDES, width=SIDES, size=st.tuples(SIDES, SIDES), method=st.sampled_from(METHODS), data=st.data())
def test_a_window_equals_slicing_the_complete_result(height, width, size, method, data):
    image = noise(height, width)
    window = tuple(slice(data.draw(st.integers(0, n - 1)), n) for n in size)
    antialias = data.draw(st.booleans())
    got = resize(image, size=size, method=method, antialias=antialias, window=window)
    np.testing.assert_array_equal(got, resize(image, size=size, method=method, antialias=antialias)[window])


def test_area_averages_complete_blocks():
    image = noise(12, 8)
    want = image.reshape(4, 3, 4, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resize_float(image, size=(4, 4), method="area"), want, atol=1e-4)


def test_truncation_darkens_by_half_a_level_and_rounding_does_not():
    image = noise(64, 64)
    floats = resize_float(image, size=(24, 24))
    truncated = resize(image, size=(24, 24)).astype(float) - floats
    rounded = resize(image, size=(24, 24), rounding="nearest").astype(float) - floats
    assert -0.55 < truncated.mean() < -0.45
    assert abs(rounded.mean()) < 0.05


def test_overshoot_is_clipped():
    step = np.zeros((2, 16, 3), np.uint8)
    step[:, 8:] = 255
    got = resize(step, size=(2, 40), method="bicubic").astype(int)
    assert (np.diff(got, axis=1) >= -40).all()  # a wrapped overshoot would fall from 255 to almost 0


def test_a_very_long_image_does_not_fill_the_cache():
    image = noise(1, 3)
    cached = resize_module._kernel_taps.cache_info().currsize
    size = resize_small_size((1, 3), shorter=9000)
    got = resize(image, size=size, window=(slice(0, 2), slice(0, 2)))
    assert (got == image[0, 0]).all()
    assert resize_module._kernel_taps.cache_info().currsize == cached


@pytest.mark.parametrize("size", [(0, 4), (4, 0)])
def test_empty_size_is_a_config_error(size):
    for function in (resize, resize_float):
        with pytest.raises(ConfigError, match="size="):
            function(noise(4, 4), size=size)


def test_shorter_side_gets_the_wanted_size():
    assert resize_small(noise(10, 20), shorter=5).shape == (5, 10, 3)
    assert resize_small(noise(20, 10), shorter=15).shape == (30, 15, 3)


BOX_SIDES = st.integers(1, 500)


@settings(max_examples=200, deadline=None)
@given(
    height=BOX_SIDES, width=BOX_SIDES, seed=st.integers(0, 2**32), least=st.floats(0.01, 1.0), room=st.floats(0, 1),
)  # fmt: skip
def test_boxes_lie_inside_and_keep_the_bounds(height, width, seed, least, room):
    area = (least, least + (1 - least) * room)
    box = sample_crop_box(np.random.default_rng(seed), height, width, area=area, attempts=10)
    assert min(box.top, box.left) >= 0
    assert min(box.height, box.width) >= 1
    assert box.top + box.height <= height
    assert box.left + box.width <= width
    if box != (0, 0, height, width):
        assert area[0] - 1e-9 <= box.height * box.width / (height * width) <= area[1] + 1e-9
        # Only rounding to whole pixels can leave the range of aspect ratios.
        assert box.width + 0.5 >= 0.75 * box.height
        assert box.width - 0.5 <= 1.33 * box.height


def test_boxes_are_a_function_of_the_generator():
    first, again, other = (sample_crop_box(np.random.default_rng(seed), 300, 400) for seed in (1, 1, 2))
    assert first == again != other


def test_full_area_is_the_full_image_without_sampling():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert sample_crop_box(rng, 30, 90, area=(1.0, 1.0)) == CropBox(0, 0, 30, 90)
    assert rng.bit_generator.state == before


@pytest.mark.parametrize(
    "ranges", [{"area": (0.0, 1.0)}, {"area": (0.6, 0.5)}, {"area": (0.5, 1.1)}, {"aspect": (0, 1)}]
)
def test_impossible_ranges_are_config_errors(ranges):
    ranges = {name: tuple(map(float, pair)) for name, pair in ranges.items()}
    with pytest.raises(ConfigError, match=next(iter(ranges))):
        sample_crop_box(np.random.default_rng(0), 10, 10, **ranges)


def test_pixels_outside_the_box_do_not_count():
    image = noise(20, 20)
    box = CropBox(4, 5, 9, 8)
    marked = np.zeros_like(image)
    marked[4:13, 5:13] = image[4:13, 5:13]
    np.testing.assert_array_equal(crop_and_resize(marked, box, size=(6, 5)), crop_and_resize(image, box, size=(6, 5)))


def test_central_box_rounds_the_offset_down_and_must_fit():
    assert central_box(9, 8, size=(4, 3)) == CropBox(2, 2, 4, 3)
    with pytest.raises(ConfigError, match="does not fit"):
        central_crop(noise(4, 4), size=(5, 4))


def test_normalization_subtracts_imagenets_mean_and_divides_by_its_deviation():
    image = noise(3, 3)
    np.testing.assert_allclose(normalize_on_host(image), (image / 255 - IMAGENET_MEAN) / IMAGENET_STD, atol=1e-5)
