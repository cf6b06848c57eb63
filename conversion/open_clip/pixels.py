"""Image preprocessing of open_clip, and its difference from ours on fixed images."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from clipa_eqx.data.images.evaluation import EvalImageConfig, eval_image, resize_for_eval
from clipa_eqx.data.images.host_pixels import normalize_on_host
from clipa_eqx.data.images.resize import resize_small_size

RgbImage = UInt8[np.ndarray, "in_height in_width 3"]
"""A decoded image, in levels of 0 to 255."""

Pixels = Float32[np.ndarray, "height width 3"]
"""Input of an image tower: resized, cropped and normalized."""

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""open_clip's defaults."""

LEVEL = 1.05 / 255
"""One level of 255, and float32 rounding: the difference of two correct resizers if one truncates and one rounds."""

OUR_SHORTEST = "shortest, longer side rounded"
"""Resize mode of the reference's resize_small and central_crop.

They round the longer side and truncate the crop's offset; torchvision does the reverse.
"""

FAST_NOTE = (
    "mode fast decodes JPEGs at a reduced size, so their pixels differ from the exact ones by more than those of the "
    "fixed images do"
)

_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Settings of image preprocessing: resized by Pillow, rounded to levels, normalized.

    Attributes:
        size: height and width in pixels.
        mean: per channel, subtracted from values in 0 to 1.
        std: per channel, the divisor.
        interpolation: Pillow's filter.
        resize_mode: "squash", "shortest", "longest" or ``OUR_SHORTEST``.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


def fixed_images(size: tuple[int, int]) -> list[RgbImage]:
    """Three images for comparisons: landscape and portrait, larger than ``size``, and a small one.

    They have smooth gradients, edges and grain. ``size`` is height and width in pixels.
    """
    height, width = size
    rng = np.random.default_rng(0)
    made: list[RgbImage] = []
    for rows, columns in ((2 * height + 7, 3 * width + 5), (3 * height + 3, 2 * width + 1), (height // 2 + 3, width)):
        y, x = np.mgrid[:rows, :columns]
        smooth = np.stack([255 * y / rows, 255 * x / columns, 127 + 127 * np.sin(9 * (x + y) / (rows + columns))], -1)
        edges = (60 * ((x // 5 + y // 7) % 2))[..., None]
        grain = rng.integers(-20, 21, (rows, columns, 3))
        made.append(np.clip(smooth * 0.7 + edges + grain, 0, 255).astype(np.uint8))
    return made


def pillow_pixels(image: RgbImage, settings: ImageSettings) -> Pixels:
    """Prepare an image as open_clip's evaluation transform does."""
    opened = Image.fromarray(image)
    resized = resize_and_crop(
        image.shape[0],
        image.shape[1],
        settings,
        lambda size: np.asarray(opened.resize((size[1], size[0]), _PILLOW[settings.interpolation])),
    )
    return normalized(resized, settings)


def our_pixels(image: RgbImage, config: EvalImageConfig) -> Pixels:
    """Prepare an image as the model folder's preprocessing does."""
    if config.mode == "exact":
        return normalize_on_host(resize_for_eval(image, config))
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, "png")
        return normalize_on_host(eval_image(file.getvalue(), config))


def levels_apart(config: EvalImageConfig, settings: ImageSettings) -> float:
    """The largest difference between our pixels and open_clip's on the fixed images, in levels of 255."""
    images = fixed_images(config.size)
    ours = [our_pixels(image, config) for image in images]
    return 255 * largest_difference(ours, [pillow_pixels(image, settings) for image in images], settings.std)


def pixels_note(config: EvalImageConfig, settings: ImageSettings) -> str:
    """The difference of our pixels from open_clip's, measured on the fixed images, and its reason."""
    why = "we truncate to whole levels, Pillow rounds"
    if config.resize != "squash":
        why += (
            "; we round the longer side and truncate the crop, torchvision does the reverse: a shift of up to 1 pixel"
        )
    if config.mode == "fast":
        why += f"; {FAST_NOTE}"
    return f"up to {levels_apart(config, settings):.0f} of 255 levels from open_clip's on the fixed images ({why})"


def resize_and_crop(
    height: int, width: int, settings: ImageSettings, to_size: Callable[[tuple[int, int]], np.ndarray]
) -> RgbImage:
    """Resize by the mode, then crop or pad at the center.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        settings: size and mode.
        to_size: resizes the image to a height and width.
    """
    size = settings.size
    if settings.resize_mode == "squash":
        return to_size(size)
    ratios = height / size[0], width / size[1]
    if settings.resize_mode == "longest":
        out = to_size((max(round(height / max(ratios)), 1), max(round(width / max(ratios)), 1)))
    elif settings.resize_mode == OUR_SHORTEST:
        out = to_size(resize_small_size((height, width), shorter=size[0]))
    elif size[0] == size[1]:
        # torchvision's Resize of the shorter side.
        short, long = min(height, width), max(height, width)
        longer = int(size[0] * long / short)
        out = to_size((size[0], longer) if height <= width else (longer, size[0]))
    else:
        out = to_size((round(height / min(ratios)), round(width / min(ratios))))
    pads = [max(want - have, 0) for want, have in zip(size, out.shape, strict=False)]
    out = np.pad(out, [*((pad // 2, (pad + 1) // 2) for pad in pads), (0, 0)])
    truncates = settings.resize_mode == OUR_SHORTEST
    spare = [have - want for want, have in zip(size, out.shape, strict=False)]
    top, left = (pixels // 2 if truncates else round(pixels / 2) for pixels in spare)
    return out[top : top + size[0], left : left + size[1]]


def normalized(levels: RgbImage, settings: ImageSettings) -> Pixels:
    """Levels of 0 to 255 as multiples of the std around the mean."""
    mean, std = (np.asarray(values, np.float32) for values in (settings.mean, settings.std))
    return (levels.astype(np.float32) / np.float32(255) - mean) / std


def largest_difference(ours: list[Pixels], theirs: list[Pixels], std: tuple[float, ...]) -> float:
    """The largest difference as a share of the range of levels; infinite for other shapes and non-finite values."""
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        # max() would ignore NaN.
        if mine.shape != other.shape or not (np.isfinite(mine).all() and np.isfinite(other).all()):
            return float("inf")
        steps = np.abs(mine.astype(np.float64) - other) * np.asarray(std, np.float64)
        worst = max(worst, float(np.max(steps, initial=0.0)))
    return worst
