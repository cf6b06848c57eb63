"""Search for the image setting in which two models differ: each known one is tried on the fixed images."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from clipa_eqx.data.images.host_pixels import IMAGENET_MEAN, IMAGENET_STD
from clipa_eqx.data.images.resize import Method, resize
from conversion.compare.report import Cause
from conversion.open_clip.pixels import (
    LEVEL,
    OPENAI_MEAN,
    OPENAI_STD,
    OUR_SHORTEST,
    ImageSettings,
    Pixels,
    RgbImage,
    fixed_images,
    largest_difference,
    normalized,
    resize_and_crop,
)

MEAN_STD = "mean or std"
RESIZE_MODE = "resize mode"
INTERPOLATION = "interpolation"
ANTIALIAS = "antialias"

_NORMS = (
    ("ImageNet's", IMAGENET_MEAN, IMAGENET_STD),
    ("OpenAI's", OPENAI_MEAN, OPENAI_STD),
    ("0.5 and 0.5", (0.5,) * 3, (0.5,) * 3),
    ("0 and 1", (0.0,) * 3, (1.0,) * 3),
)
_METHODS: tuple[Method, ...] = ("bilinear", "bicubic", "nearest", "area", "lanczos3")


class ImageReport(NamedTuple):
    """Result of ``compare_images``.

    Attributes:
        levels: the largest difference in levels of 255, by B's std.
        is_equal: it is at most one level.
        causes: the settings that explain it; none if it is unexplained.
    """

    levels: float
    is_equal: bool
    causes: tuple[Cause, ...]


def compare_images(
    a: Callable[[RgbImage], Pixels],
    b: Callable[[RgbImage], Pixels],
    *,
    settings_a: ImageSettings,
    settings_b: ImageSettings | None,
) -> ImageReport:
    """Prepare the fixed images in both ways; if they differ, find the settings that turn A's pixels into B's.

    Args:
        a: prepares an image as A does.
        b: prepares an image as B does.
        settings_a: the settings of ``a``.
        settings_b: the settings of ``b``, if they are recorded.
    """
    images = fixed_images(settings_a.size)
    ours, theirs = ([prepare(image) for image in images] for prepare in (a, b))
    error = largest_difference(ours, theirs, settings_a.std if settings_b is None else settings_b.std)
    if error <= LEVEL:
        return ImageReport(255 * error, True, ())
    changes = list(_changes(settings_a, settings_b))
    for count in range(1, 5):
        for chosen in itertools.combinations(changes, count):
            if len({change.group for change in chosen}) < count:
                continue
            made = _Resizer(settings=settings_a)
            for change in chosen:
                made = change.make(made)
            # The size of a level depends on the std.
            pixels = [_resized_pixels(image, made) for image in images]
            if largest_difference(pixels, theirs, made.settings.std) <= LEVEL:
                return ImageReport(255 * error, False, tuple((c.cause, c.detail) for c in chosen))
    return ImageReport(255 * error, False, ())


@dataclass(frozen=True, kw_only=True)
class _Resizer:
    """Settings of our own resizer, which has every interpolation, with and without antialias."""

    settings: ImageSettings
    has_antialias: bool = True


class _Change(NamedTuple):
    group: str
    cause: str
    detail: str
    make: Callable[[_Resizer], _Resizer]


def _changes(a: ImageSettings, b: ImageSettings | None) -> Iterator[_Change]:
    theirs = () if b is None else ((f"{b.mean} and {b.std}", b.mean, b.std),)
    for name, mean, std in (*_NORMS, *theirs):
        if (tuple(mean), tuple(std)) != (tuple(a.mean), tuple(a.std)):
            yield _Change("values", MEAN_STD, f"B's are {name}", partial(_with, mean=tuple(mean), std=tuple(std)))
    for mode in ("squash", "shortest", "longest", OUR_SHORTEST):
        if mode != a.resize_mode:
            detail = f"{a.resize_mode} in A, {mode} in B"
            yield _Change("mode", RESIZE_MODE, detail, partial(_with, resize_mode=mode))
    yield _Change("antialias", ANTIALIAS, "B has none", lambda one: replace(one, has_antialias=False))
    for method in _METHODS:
        if method != a.interpolation:
            detail = f"{a.interpolation} in A, {method} in B"
            yield _Change("interpolation", INTERPOLATION, detail, partial(_with, interpolation=method))


def _with(
    resizer: _Resizer,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    resize_mode: str | None = None,
    interpolation: str | None = None,
) -> _Resizer:
    old = resizer.settings
    new = replace(
        old,
        mean=old.mean if mean is None else mean,
        std=old.std if std is None else std,
        resize_mode=resize_mode or old.resize_mode,
        interpolation=interpolation or old.interpolation,
    )
    return replace(resizer, settings=new)


def _resized_pixels(image: RgbImage, resizer: _Resizer) -> Pixels:
    settings = resizer.settings
    methods: dict[str, Method] = {method: method for method in _METHODS}
    method = methods[settings.interpolation]
    resized = resize_and_crop(
        image.shape[0],
        image.shape[1],
        settings,
        lambda size: resize(image, size=size, method=method, antialias=resizer.has_antialias, rounding="nearest"),
    )
    return normalized(resized, settings)
