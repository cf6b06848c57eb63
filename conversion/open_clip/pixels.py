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

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""open_clip's defaults."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """How pictures are prepared: resized by Pillow, rounded to levels, normalized."""

    size: tuple[int, int]
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


LEVEL = 1.05 / 255
"""One level of 255, and rounding: how far two good resizers are apart, one cutting, the other rounding."""


Picture = UInt8[np.ndarray, "in_height in_width 3"]


Pixels = Float32[np.ndarray, "height width 3"]


OUR_SHORTEST = "shortest, longer side rounded"
"""The reference's resize_small and central_crop; torchvision cuts where these round, and rounds where they cut."""


FAST_NOTE = (
    "mode fast: of JPEGs, which it decodes smaller, pixels are further from the exact ones than of the fixed pictures"
)


_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def fixed_pictures(size: tuple[int, int]) -> list[Picture]:
    """Three pictures: landscape and portrait, larger than ``size``, and a small one; smooth, with edges and grain."""
    height, width = size
    rng = np.random.default_rng(0)
    made: list[Picture] = []
    for rows, columns in ((2 * height + 7, 3 * width + 5), (3 * height + 3, 2 * width + 1), (height // 2 + 3, width)):
        y, x = np.mgrid[:rows, :columns]
        smooth = np.stack([255 * y / rows, 255 * x / columns, 127 + 127 * np.sin(9 * (x + y) / (rows + columns))], -1)
        edges = (60 * ((x // 5 + y // 7) % 2))[..., None]
        grain = rng.integers(-20, 21, (rows, columns, 3))
        made.append(np.clip(smooth * 0.7 + edges + grain, 0, 255).astype(np.uint8))
    return made


def pillow_pixels(picture: Picture, settings: Pictures) -> Pixels:
    """What open_clip's evaluation transform makes of a picture."""
    image = Image.fromarray(picture)
    resized = resize_and_crop(
        picture.shape[0],
        picture.shape[1],
        settings,
        lambda size: np.asarray(image.resize((size[1], size[0]), _PILLOW[settings.interpolation])),
    )
    return normalized(resized, settings)


def levels_apart(config: EvalImageConfig, settings: Pictures) -> float:
    """The largest difference between our pixels and open_clip's on the fixed pictures, in levels of 255."""
    pictures = fixed_pictures(config.size)
    ours = [our_pixels(picture, config) for picture in pictures]
    return 255 * largest_difference(ours, [pillow_pixels(picture, settings) for picture in pictures], settings.std)


def pixels_note(config: EvalImageConfig, pictures: Pictures) -> str:
    """How far our pixels are from open_clip's, measured on the fixed pictures, and why."""
    why = "levels are cut, Pillow rounds them"
    if config.resize != "squash":
        why += "; the longer side is rounded and the crop cut, torchvision does the reverse: a shift by up to a pixel"
    if config.mode == "fast":
        why += f"; {FAST_NOTE}"
    return f"up to {levels_apart(config, pictures):.0f} of 255 levels from open_clip's on the fixed pictures ({why})"


def our_pixels(picture: Picture, config: EvalImageConfig) -> Pixels:
    """What a model folder's preprocessing makes of a picture."""
    if config.mode == "exact":
        return normalize_on_host(resize_for_eval(picture, config))
    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, "png")
        return normalize_on_host(eval_image(file.getvalue(), config))


def resize_and_crop(
    height: int, width: int, settings: Pictures, to_size: Callable[[tuple[int, int]], np.ndarray]
) -> Picture:
    """Resized as the mode says, then cropped or padded at the center."""
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
    is_cut = settings.resize_mode == OUR_SHORTEST
    spare = [have - want for want, have in zip(size, out.shape, strict=False)]
    top, left = (pixels // 2 if is_cut else round(pixels / 2) for pixels in spare)
    return out[top : top + size[0], left : left + size[1]]


def normalized(levels: Picture, settings: Pictures) -> Pixels:
    mean, std = (np.asarray(values, np.float32) for values in (settings.mean, settings.std))
    return (levels.astype(np.float32) / np.float32(255) - mean) / std


def largest_difference(ours: list[Pixels], theirs: list[Pixels], std: tuple[float, ...]) -> float:
    """Largest difference as a share of the range of levels; infinite for other shapes and what is not finite."""
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        # max() would pass over NaN.
        if mine.shape != other.shape or not (np.isfinite(mine).all() and np.isfinite(other).all()):
            return float("inf")
        steps = np.abs(mine.astype(np.float64) - other) * np.asarray(std, np.float64)
        worst = max(worst, float(np.max(steps, initial=0.0)))
    return worst
