"""Whether two models prepare pictures alike, and if not, which setting differs: each is tried on fixed pictures."""

import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from clipa_eqx.data.eval_images import EvalImageConfig, eval_image, resize_for_eval
from clipa_eqx.data.pixel_values import IMAGENET_MEAN, IMAGENET_STD, normalise_imagenet
from clipa_eqx.data.resize import Method, resize, resize_small_size
from conversion.open_clip_config import OPENAI_MEAN, OPENAI_STD, Pictures

MEAN_STD = "mean or std"
RESIZE_MODE = "resize mode"
INTERPOLATION = "interpolation"
ANTIALIAS = "antialias"

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
_NORMS = (
    ("ImageNet's", IMAGENET_MEAN, IMAGENET_STD),
    ("OpenAI's", OPENAI_MEAN, OPENAI_STD),
    ("0.5 and 0.5", (0.5,) * 3, (0.5,) * 3),
    ("0 and 1", (0.0,) * 3, (1.0,) * 3),
)


class PictureReport(NamedTuple):
    """Largest difference in levels of 255 (by B's std), and causes with details; no causes where it is unexplained."""

    levels: float
    is_equal: bool
    causes: tuple[tuple[str, str], ...]


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
    resized = _placed(
        picture.shape[0],
        picture.shape[1],
        settings,
        lambda size: np.asarray(image.resize((size[1], size[0]), _PILLOW[settings.interpolation])),
    )
    return _normalised(resized, settings)


def compare_pictures(
    a: Callable[[Picture], Pixels], b: Callable[[Picture], Pixels], *, settings_a: Pictures, settings_b: Pictures | None
) -> PictureReport:
    """Prepare the fixed pictures both ways; where they differ, find the settings that turn A's into B's."""
    pictures = fixed_pictures(settings_a.size)
    ours, theirs = ([make(picture) for picture in pictures] for make in (a, b))
    error = _levels(ours, theirs, settings_a.std if settings_b is None else settings_b.std)
    if error <= LEVEL:
        return PictureReport(255 * error, True, ())
    changes = list(_changes(settings_a, settings_b))
    for count in range(1, 5):
        for chosen in itertools.combinations(changes, count):
            if len({change.group for change in chosen}) < count:
                continue
            made = _Settings(pictures=settings_a)
            for change in chosen:
                made = change.make(made)
            # Normalised otherwise, a level is another step.
            if _levels([_own_pixels(picture, made) for picture in pictures], theirs, made.pictures.std) <= LEVEL:
                return PictureReport(255 * error, False, tuple((c.cause, c.detail) for c in chosen))
    return PictureReport(255 * error, False, ())


def levels_apart(config: EvalImageConfig, settings: Pictures) -> float:
    """The largest difference between our pixels and open_clip's on the fixed pictures, in levels of 255."""
    pictures = fixed_pictures(config.size)
    ours = [our_pixels(picture, config) for picture in pictures]
    return 255 * _levels(ours, [pillow_pixels(picture, settings) for picture in pictures], settings.std)


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
        return normalise_imagenet(resize_for_eval(picture, config))
    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, "png")
        return normalise_imagenet(eval_image(file.getvalue(), config))


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """Settings of a resizer of our own, which can do without antialias and in every interpolation."""

    pictures: Pictures
    has_antialias: bool = True


class _Change(NamedTuple):
    group: str
    cause: str
    detail: str
    make: Callable[[_Settings], _Settings]


def _changes(a: Pictures, b: Pictures | None) -> Iterator[_Change]:
    theirs = () if b is None else ((f"{b.mean} and {b.std}", b.mean, b.std),)
    for name, mean, std in (*_NORMS, *theirs):
        if (tuple(mean), tuple(std)) != (tuple(a.mean), tuple(a.std)):
            yield _Change("values", MEAN_STD, f"B's are {name}", partial(_with, mean=tuple(mean), std=tuple(std)))
    for mode in ("squash", "shortest", "longest", OUR_SHORTEST):
        if mode != a.resize_mode:
            detail = f"{a.resize_mode} in A, {mode} in B"
            yield _Change("mode", RESIZE_MODE, detail, partial(_with, resize_mode=mode))
    yield _Change("antialias", ANTIALIAS, "B has none", lambda s: replace(s, has_antialias=False))
    for method in ("bilinear", "bicubic", "nearest", "area", "lanczos3"):
        if method != a.interpolation:
            detail = f"{a.interpolation} in A, {method} in B"
            yield _Change("interpolation", INTERPOLATION, detail, partial(_with, interpolation=method))


def _with(
    settings: _Settings,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    resize_mode: str | None = None,
    interpolation: str | None = None,
) -> _Settings:
    old = settings.pictures
    new = replace(
        old,
        mean=old.mean if mean is None else mean,
        std=old.std if std is None else std,
        resize_mode=resize_mode or old.resize_mode,
        interpolation=interpolation or old.interpolation,
    )
    return replace(settings, pictures=new)


def _own_pixels(picture: Picture, settings: _Settings) -> Pixels:
    methods: dict[str, Method] = {
        "bilinear": "bilinear",
        "bicubic": "bicubic",
        "nearest": "nearest",
        "area": "area",
        "lanczos3": "lanczos3",
    }
    method = methods[settings.pictures.interpolation]
    resized = _placed(
        picture.shape[0],
        picture.shape[1],
        settings.pictures,
        lambda size: resize(picture, size=size, method=method, antialias=settings.has_antialias, rounding="nearest"),
    )
    return _normalised(resized, settings.pictures)


def _placed(height: int, width: int, settings: Pictures, to_size: Callable[[tuple[int, int]], np.ndarray]) -> Picture:
    """Resized as the mode says, then cropped or padded at the centre."""
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


def _normalised(levels: Picture, settings: Pictures) -> Pixels:
    mean, std = (np.asarray(values, np.float32) for values in (settings.mean, settings.std))
    return (levels.astype(np.float32) / np.float32(255) - mean) / std


def _levels(ours: list[Pixels], theirs: list[Pixels], std: tuple[float, ...]) -> float:
    """Largest difference as a share of the range of levels; infinite for other shapes and what is not finite."""
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        # max() would pass over NaN.
        if mine.shape != other.shape or not (np.isfinite(mine).all() and np.isfinite(other).all()):
            return float("inf")
        steps = np.abs(mine.astype(np.float64) - other) * np.asarray(std, np.float64)
        worst = max(worst, float(np.max(steps, initial=0.0)))
    return worst
