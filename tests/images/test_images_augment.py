"""Training and evaluation images: random parameters, colors, affine changes, and fast mode against exact mode."""

import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from support import goldens
from support.image_files import encode

from clipa_eqx.data.images import fast as fast_images
from clipa_eqx.data.images.affine import AffineChange, AffineConfig, apply_affine, sample_affine
from clipa_eqx.data.images.augment import ImageConfig, render_image, sample_augmentation, train_image
from clipa_eqx.data.images.color import COLOR_OPS, ColorChange, ColorConfig, apply_color, sample_color
from clipa_eqx.data.images.decode import image_size
from clipa_eqx.data.images.evaluation import EvalImageConfig, eval_image
from clipa_eqx.data.images.fast import Region, ScaledImage, resample
from clipa_eqx.errors import ConfigError, DataError

# Bounds on what the docstring of ImageConfig states, with a margin for other encoders; levels of 255 and decibels.
PHOTO_MEAN_ABS, PHOTO_PSNR = 1.5, 40.0
RECORDED_MEAN_ABS = 3.0  # mean over the recorded images, pure noise among them


def photo(height: int, width: int, *, seed: int, roughness: float) -> np.ndarray:
    """Random fields at all scales with the falling spectrum of photographs."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cells in (2, 4, 8, 16, 32, 64, 128, 256):
        field = rng.normal(size=(cells * height // width + 2, cells + 2, 3)).astype(np.float32)
        planes = [Image.fromarray(field[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        total += np.stack([np.asarray(plane) for plane in planes], axis=-1) / cells**roughness
    total = (total - total.mean()) / total.std() * 60 + 120
    return np.clip(total, 0, 255).astype(np.uint8)


def psnr(difference: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean(difference**2)))


def differences(data: bytes, size: tuple[int, int], *, seeds: int) -> list[np.ndarray]:
    out = []
    for seed in range(seeds):
        exact, fast = (
            train_image(data, ImageConfig(size=size, mode=mode), np.random.default_rng(seed))
            for mode in ("exact", "fast")
        )
        out.append(fast.astype(float) - exact)
    for crop in ("squash", "resize_small_crop"):
        exact, fast = (
            eval_image(data, EvalImageConfig(size=size, resize=crop, mode=mode)) for mode in ("exact", "fast")
        )
        out.append(fast.astype(float) - exact)
    return out


@pytest.mark.parametrize(("height", "width"), [(384, 512), (512, 384), (240, 320), (1024, 768)])
@pytest.mark.parametrize(("roughness", "subsampling"), [(0.5, "420"), (0.5, "444"), (1.0, "420")])
def test_fast_is_near_exact_on_photographs(height, width, roughness, subsampling):
    pixels = photo(height, width, seed=1, roughness=roughness)
    data = simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling=subsampling)
    for side in (64, 112):
        for difference in differences(data, (side, side), seeds=3):
            assert np.abs(difference).mean() < PHOTO_MEAN_ABS
            assert psnr(difference) > PHOTO_PSNR


def test_fast_is_near_exact_on_the_recorded_images():
    found = [
        np.abs(difference).mean()
        for path in sorted((goldens.DEFAULT / "preprocess" / "images").iterdir())  # the bound holds for these images
        for difference in differences(path.read_bytes(), (32, 32), seeds=3)
    ]
    assert np.mean(found) < RECORDED_MEAN_ABS


def test_without_jpeg_fast_differs_by_rounding_only():
    for difference in differences(encode(photo(90, 120, seed=3, roughness=0.5)), (40, 40), seeds=4):
        assert np.abs(difference).max() <= 2
        assert 0.3 < difference.mean() < 0.7  # exact truncates


@pytest.mark.parametrize("size", [(112, 112), (20, 31), (190, 250)])
@pytest.mark.parametrize(
    "region", [(15, 20, 148, 148), (0, 0, 192, 256), (10.5, 3.5, 91, 150.5), (0.25, 7.5, 191.75, 60)]
)
def test_resampling_is_pillows_up_to_one_level(size, region, monkeypatch):
    pixels = photo(192, 256, seed=4, roughness=0.5)
    fast = resample(ScaledImage(pixels, 1.0), Region(*region), size=size)
    monkeypatch.setattr(fast_images, "_IS_VECTORIZED", False)  # as on systems without a wheel of the library
    slow = resample(ScaledImage(pixels, 1.0), Region(*region), size=size)
    assert np.abs(fast.astype(int) - slow).max() <= 1
    assert slow.std() > 10


def test_a_box_that_rounding_pushes_past_the_edge_is_kept_inside():
    pixels = photo(50, 70, seed=4, roughness=0.5)
    rng = np.random.default_rng(0)
    for _ in range(300):
        scale = float(rng.choice([0.125, 0.25, 0.5, 1.0]))
        top, left = rng.random(2) * (30, 50)
        region = Region(top / scale, left / scale, (50 - top) / scale, (70 - left) / scale)
        assert resample(ScaledImage(pixels, scale), region, size=(9, 7)).shape == (9, 7, 3)


def test_both_modes_show_the_same_region_and_leave_the_generator_in_the_same_state():
    rows, columns = np.mgrid[:300, :400]
    where = np.stack([rows * 255 / 299, columns * 255 / 399, 0 * rows], axis=-1).astype(np.uint8)
    data = simplejpeg.encode_jpeg(where, quality=95, colorsubsampling="444")
    affine = AffineConfig(max_rotate_degrees=20.0, scale=(0.8, 1.2), max_shift=0.1)
    for seed in range(10):
        rngs = [np.random.default_rng(seed) for _ in range(2)]
        exact, fast = (
            train_image(data, ImageConfig(size=(32, 48), mode=mode, min_area=0.1, affine=affine), rng).astype(float)
            for mode, rng in zip(("exact", "fast"), rngs, strict=True)
        )
        assert rngs[0].bit_generator.state == rngs[1].bit_generator.state
        # One pixel of the image is less than a level; a box one pixel off in both corners would shift the mean.
        assert np.abs((fast - exact).mean(axis=(0, 1)) - 0.5).max() < 0.6


def test_random_parameters_do_not_depend_on_the_mode():
    color, affine = ColorConfig(), AffineConfig(max_rotate_degrees=5.0)
    sampled = [
        sample_augmentation(
            np.random.default_rng(4), 99, 77, ImageConfig(size=(8, 8), mode=mode, color=color, affine=affine)
        )
        for mode in ("exact", "fast")
    ]
    assert sampled[0] == sampled[1]
    assert sampled[0].color is not None
    assert sampled[0].affine is not None


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("size", [(1, 1), (40, 30), (130, 220)])
def test_any_size_comes_out_also_from_tiny_and_long_images(mode, size):
    for shape in ((1, 1), (3, 200), (200, 3), (61, 47)):
        for data in (
            simplejpeg.encode_jpeg(photo(*shape, seed=2, roughness=1.0)),
            encode(photo(*shape, seed=2, roughness=1.0)),
        ):
            got = train_image(data, ImageConfig(size=size, mode=mode), np.random.default_rng(0))
            assert got.shape == (*size, 3)
            assert got.dtype == np.uint8
            side = (size[0], size[0])
            assert eval_image(data, EvalImageConfig(size=side, mode=mode)).shape == (*side, 3)


def encode_cmyk(levels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).convert("CMYK").save(file, "JPEG")
    return file.getvalue()


LEVELS = photo(147, 93, seed=5, roughness=0.8)
ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # orientation
JPEG_KINDS = {
    "odd sides": encode(LEVELS, "JPEG"),
    "progressive": encode(LEVELS, "JPEG", progressive=True),
    "gray": encode(LEVELS[..., 0], "JPEG"),
    "4:4:4": encode(LEVELS, "JPEG", subsampling=0),
    "CMYK": encode_cmyk(LEVELS),
    "rotated by EXIF": encode(LEVELS, "JPEG", exif=ROTATED.tobytes()),
    "no JPEG": encode(LEVELS, "PNG"),
}


@pytest.mark.parametrize("kind", JPEG_KINDS)
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_reading_the_header_once_changes_no_pixel(kind, mode):
    data, config = JPEG_KINDS[kind], ImageConfig(size=(24, 31), mode=mode)
    for seed in range(5):
        parameters = sample_augmentation(np.random.default_rng(seed), *image_size(data), config)
        expected = render_image(data, config, parameters)  # reads it again
        np.testing.assert_array_equal(train_image(data, config, np.random.default_rng(seed)), expected)
        assert expected.std() > 10


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("data", [b"", b"nothing to see"])
def test_bad_bytes_are_data_errors(mode, data):
    with pytest.raises(DataError):
        train_image(data, ImageConfig(size=(8, 8), mode=mode), np.random.default_rng(0))
    with pytest.raises(DataError):
        eval_image(data, EvalImageConfig(size=(8, 8), mode=mode))


def test_color_changes_have_the_stated_ranges_and_frequencies():
    rng = np.random.default_rng(0)
    changes = [sample_color(rng, ColorConfig(strength=0.5)) for _ in range(4000)]
    assert abs(np.mean([bool(change.order) for change in changes]) - 0.8) < 0.03
    assert abs(np.mean([change.gray for change in changes]) - 0.2) < 0.03
    for op in COLOR_OPS:
        values = np.array([getattr(change, op) for change in changes])
        center, spread = (0.0, 0.1) if op == "hue" else (1.0, 0.4)
        assert np.abs(values - center).max() <= spread
        assert abs(values.mean() - center) < spread / 10
        assert values.std() > spread / 2
        firsts = np.mean([change.order[0] == op for change in changes if change.order])
        assert abs(firsts - 0.25) < 0.04
    assert all(sorted(change.order) in ([], sorted(COLOR_OPS)) for change in changes)


def test_saturation_and_hue_keep_gray_and_black():
    gray = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=-1)
    change = ColorChange(order=("saturation", "hue"), saturation=1.7, hue=0.3)
    assert np.abs(apply_color(gray, change).astype(int) - gray).max() <= 1


def test_a_third_of_a_turn_moves_red_to_green():
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 200
    got = apply_color(red, ColorChange(order=("hue",), hue=1 / 3)).astype(int)
    assert np.abs(got - [0, 200, 0]).max() <= 1


def icon() -> np.ndarray:
    image = np.full((41, 61, 3), 250, np.uint8)
    image[10:16, 40:50] = 10
    return image


def center_of_ink(image: np.ndarray) -> np.ndarray:
    ink = 250.0 - image[..., 0]
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(ink * rows).sum(), (ink * columns).sum()]) / ink.sum()


@pytest.mark.parametrize(
    ("change", "row", "column"),
    [
        (AffineChange(shift_right=-0.1), 12.5, 44.5 - 6.1),
        (AffineChange(shift_down=0.2), 12.5 + 8.2, 44.5),
        (AffineChange(scale=0.5), 20 + (12.5 - 20) / 2, 30 + (44.5 - 30) / 2),
        # Counterclockwise: right of the center goes up, above it goes left.
        (AffineChange(degrees=90.0, scale=0.5), 20 - 14.5 / 2, 30 - 7.5 / 2),
    ],
)
def test_affine_moves_the_icon_and_keeps_the_background(change, row, column):
    got = apply_affine(icon(), change)
    np.testing.assert_allclose(center_of_ink(got), [row, column], atol=0.3)
    assert (got[[0, 0, -1, -1], [0, -1, 0, -1]] == 250).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (5, 1), (2, 2), (6, 4)])
def test_uncovered_pixels_have_the_median_color_of_the_corners(shape):
    for seed in range(20):
        image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
        corners = image[:: max(shape[0] - 1, 1), :: max(shape[1] - 1, 1)].reshape(-1, 3)
        got = apply_affine(image, AffineChange(shift_right=5.0))
        assert (got == np.median(corners, axis=0).astype(np.uint8)).all()


def test_affine_changes_fill_their_ranges():
    config = AffineConfig(max_rotate_degrees=15.0, scale=(0.5, 2.0), max_shift=0.1)
    rng = np.random.default_rng(0)
    changes = [sample_affine(rng, config) for _ in range(1000)]
    for name, low, high in (
        ("degrees", -15, 15),
        ("scale", 0.5, 2),
        ("shift_right", -0.1, 0.1),
        ("shift_down", -0.1, 0.1),
    ):
        values = [getattr(change, name) for change in changes]
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(values) <= high


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ImageConfig(size=(0, 8)), "size"),
        (lambda: ImageConfig(size=(8, 8), min_area=0.9, max_area=0.5), "area"),
        (lambda: ImageConfig(size=(8, 8), min_aspect=2.0), "aspect"),
        (lambda: ColorConfig(strength=-0.1), "strength"),
        (lambda: ColorConfig(gray_probability=1.5), "gray_probability"),
        (lambda: AffineConfig(scale=(0.0, 1.0)), "scale"),
        (lambda: AffineConfig(max_rotate_degrees=-1.0), "max_rotate_degrees"),
        (lambda: AffineConfig(max_shift=1.0), "max_shift"),
        (lambda: EvalImageConfig(size=(8, 9)), "square"),
    ],
)
def test_impossible_configs_are_refused(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def test_configs_and_functions_can_be_sent_to_workers():
    config = ImageConfig(size=(8, 8), color=ColorConfig(), affine=AffineConfig())
    function, copy = pickle.loads(pickle.dumps((train_image, config)))
    assert copy == config
    data = encode(icon())
    got, want = (f(data, config, np.random.default_rng(0)) for f in (function, train_image))
    np.testing.assert_array_equal(got, want)


def test_image_modules_import_no_jax():
    code = "import sys, clipa_eqx.data.images.augment, clipa_eqx.data.images.evaluation; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
