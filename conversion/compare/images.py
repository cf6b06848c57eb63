"""Whether two models prepare pictures alike, and if not, which setting differs: each is tried on fixed pictures."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from clipa_eqx.data.images.host_pixels import IMAGENET_MEAN, IMAGENET_STD
from clipa_eqx.data.images.resize import Method, resize
from conversion.open_clip.pixels import (
    LEVEL,
    OPENAI_MEAN,
    OPENAI_STD,
    OUR_SHORTEST,
    Picture,
    Pictures,
    Pixels,
    fixed_pictures,
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


class PictureReport(NamedTuple):
    """Largest difference in levels of 255 (by B's std), and causes with details; no causes where it is unexplained."""

    levels: float
    is_equal: bool
    causes: tuple[tuple[str, str], ...]


def compare_pictures(
    a: Callable[[Picture], Pixels], b: Callable[[Picture], Pixels], *, settings_a: Pictures, settings_b: Pictures | None
) -> PictureReport:
    """Prepare the fixed pictures both ways; where they differ, find the settings that turn A's into B's."""
    pictures = fixed_pictures(settings_a.size)
    ours, theirs = ([make(picture) for picture in pictures] for make in (a, b))
    error = largest_difference(ours, theirs, settings_a.std if settings_b is None else settings_b.std)
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
            # Normalized otherwise, a level is another step.
            if (
                largest_difference([_own_pixels(picture, made) for picture in pictures], theirs, made.pictures.std)
                <= LEVEL
            ):
                return PictureReport(255 * error, False, tuple((c.cause, c.detail) for c in chosen))
    return PictureReport(255 * error, False, ())


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
    resized = resize_and_crop(
        picture.shape[0],
        picture.shape[1],
        settings.pictures,
        lambda size: resize(picture, size=size, method=method, antialias=settings.has_antialias, rounding="nearest"),
    )
    return normalized(resized, settings.pictures)
