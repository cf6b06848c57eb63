"""Exact image resizing with the arithmetic of TensorFlow's kernels, in numpy.

Weights and order of summation are TensorFlow's. Pillow and ``jax.image`` sum in another order. If the exact result is a
whole level, their last bit decides which level truncation gives, and complete areas then differ by one level.
"""

import functools
import math
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float32, UInt8

from clipa_eqx.errors import ConfigError

Method = Literal["bilinear", "area", "nearest", "bicubic", "lanczos3"]
Rounding = Literal["truncate", "nearest"]

Pixels = UInt8[np.ndarray, "height width channels"]
Levels = Float32[np.ndarray, "height width channels"]

# Rows and columns of the result to compute.
Window = tuple[slice, slice]
EVERYTHING: Window = (slice(None), slice(None))

_RADIUS = {"bilinear": 1.0, "bicubic": 2.0, "lanczos3": 3.0}


class _Taps(NamedTuple):
    """Input positions that each output position sums, and their weights, in order of summation."""

    position: np.ndarray  # (taps, out)
    weight: np.ndarray  # (taps, out)


def resize(
    image: UInt8[np.ndarray, "height width channels"],
    *,
    size: tuple[int, int],
    method: Method = "bilinear",
    antialias: bool = True,
    rounding: Rounding = "truncate",
    window: Window = EVERYTHING,
) -> UInt8[np.ndarray, "out_height out_width channels"]:
    """Squash to ``size`` (height, width), with the values of the reference's op ``resize`` on uint8.

    Args:
        image: levels 0..255.
        size: (height, width) of the result in pixels.
        method: filter. Overshoot of "bicubic" and "lanczos3" is clipped; the reference wraps around.
        antialias: widen the filter when shrinking; "area" and "nearest" ignore it.
        rounding: "truncate" is the reference's cast, which darkens by half a level on average; "nearest" does not.
        window: rows and columns of the result to compute; the same as slicing the result.

    Raises:
        ConfigError: a side of ``size`` below 1 or an unknown method.
    """
    if size == image.shape[:2] or method == "nearest":
        return _nearest(image, size=_checked(size), window=window)
    values = resize_float(image, size=size, method=method, antialias=antialias, window=window)
    if rounding == "nearest":
        values = np.rint(values)
    if method in ("bicubic", "lanczos3"):
        values = np.clip(values, 0, 255)
    return values.astype(np.uint8)


def resize_float(
    image: Pixels | Levels,
    *,
    size: tuple[int, int],
    method: Method = "bilinear",
    antialias: bool = True,
    window: Window = EVERYTHING,
) -> Float32[np.ndarray, "out_height out_width channels"]:
    """Resize like ``resize`` but without the final cast, as ``tf.image.resize``; values are in levels.

    Without antialias, "bicubic" evaluates its kernel exactly, where TensorFlow reads a table of 1024 steps.

    Raises:
        ConfigError: a side of ``size`` below 1 or an unknown method.
    """
    if method not in get_args(Method):
        raise ConfigError(f"resize: method={method!r} is unknown; expected one of {', '.join(get_args(Method))}")
    out_height, out_width = _checked(size)
    height, width = image.shape[:2]
    if (out_height, out_width) == (height, width) or method == "nearest":
        return _nearest(image, size=size, window=window).astype(np.float32)
    make = functools.partial(_taps, method=method, antialias=antialias)
    rows, columns = make(height, out_height, keep=window[0]), make(width, out_width, keep=window[1])
    if method == "bilinear" and not antialias:
        return _lerp(image, rows, columns)
    if method == "area":  # columns first here, and normalized at the end
        across, down = np.float32(width) / np.float32(out_width), np.float32(height) / np.float32(out_height)
        return _sum_rows(_sum_columns(image, columns), rows) * (np.float32(1) / (down * across))
    return _sum_columns(_sum_rows(image, rows), columns)


def resize_small_size(size: tuple[int, int], *, shorter: int) -> tuple[int, int]:
    """Compute (height, width) after scaling the shorter side to ``shorter``; float32, rounded half to even."""
    height, width = size
    ratio = np.float32(shorter) / np.float32(min(height, width))
    return round(float(np.float32(height) * ratio)), round(float(np.float32(width) * ratio))


def resize_small(
    image: UInt8[np.ndarray, "height width channels"],
    *,
    shorter: int,
    method: Method = "area",
    antialias: bool = False,
    rounding: Rounding = "truncate",
) -> UInt8[np.ndarray, "out_height out_width channels"]:
    """Scale the shorter side to ``shorter`` pixels and keep the aspect ratio (the reference's op of this name).

    Raises:
        ConfigError: ``shorter`` below 1 or an unknown method.
    """
    size = resize_small_size((image.shape[0], image.shape[1]), shorter=shorter)
    return resize(image, size=size, method=method, antialias=antialias, rounding=rounding)


def _checked(size: tuple[int, int]) -> tuple[int, int]:
    if min(size) < 1:
        raise ConfigError(f"resize: size={size} must be (height, width) of at least 1 pixel each")
    return size


def _nearest(image: np.ndarray, *, size: tuple[int, int], window: Window) -> np.ndarray:
    if size == image.shape[:2]:
        return image[window].copy()
    rows, columns = (_nearest_index(n, m)[keep] for n, m, keep in zip(image.shape[:2], size, window, strict=True))
    return image[rows[:, None], columns]


def _nearest_index(source: int, out: int) -> np.ndarray:
    scale = np.float32(source) / np.float32(out)
    center = (np.arange(out, dtype=np.float32) + np.float32(0.5)) * scale
    return np.minimum(np.floor(center).astype(np.intp), source - 1)


def _sum_rows(x: np.ndarray, taps: _Taps) -> np.ndarray:
    """Weighted sum of rows in index order; float32 (out, width, channels)."""
    flat = x.reshape(x.shape[0], -1)
    total = flat[taps.position[0]] * taps.weight[0][:, None]
    for index, weight in zip(taps.position[1:], taps.weight[1:], strict=True):
        total += flat[index] * weight[:, None]
    return total.reshape(-1, *x.shape[1:])


def _sum_columns(x: np.ndarray, taps: _Taps) -> np.ndarray:
    # Gathering whole rows of the transpose is faster than gathering short runs.
    return np.ascontiguousarray(_sum_rows(np.ascontiguousarray(x.swapaxes(0, 1)), taps).swapaxes(0, 1))


def _taps(source: int, out: int, *, keep: slice, method: Method, antialias: bool) -> _Taps:
    if method == "area":
        make = _area_taps
    elif method == "bilinear" and not antialias:
        make = _lerp_taps
    else:
        cached = _kernel_taps if out <= _LONGEST_CACHED else _kernel_taps.__wrapped__
        make = functools.partial(cached, method=method, antialias=antialias)
    taps = make(source, out)
    return _Taps(taps.position[:, keep], taps.weight[:, keep])


# A very long image would fill the cache with megabytes for one use.
_LONGEST_CACHED = 8192


# Random crops need many (source, out) pairs; 4096 of them at 112 px take about 15 MB per worker.
@functools.lru_cache(maxsize=4096)
def _kernel_taps(source: int, out: int, method: Method, antialias: bool) -> _Taps:
    """Spans and normalized weights of TensorFlow's ScaleAndTranslate, all in float32."""
    one, half = np.float32(1), np.float32(0.5)
    inverse_scale = one / (np.float32(out) / np.float32(source))
    stretch = max(inverse_scale, one) if antialias else one
    reach = np.float32(_RADIUS[method]) * stretch
    sample = (np.arange(out, dtype=np.float32) + half) * inverse_scale
    start = np.clip(np.ceil(sample - reach - half), 0, source - 1).astype(np.intp)
    stop = np.clip(np.floor(sample + reach - half), 0, source - 1).astype(np.intp) + 1
    index = start + np.arange(int((stop - start).max()))[:, None]
    distance = np.abs(index.astype(np.float32) + half - sample) * (one / stretch)
    weight = np.where(index < stop, _kernel(distance, method), np.float32(0))
    total = np.zeros(out, np.float32)
    for row in weight:  # in index order, as TensorFlow's kernel adds them
        total += row
    weight *= one / total
    used = np.flatnonzero(np.any(weight != 0, axis=1))
    last = int(used[-1]) + 1  # a tap without weight adds an exact zero
    return _Taps(np.minimum(index[:last], source - 1), weight[:last])


def _kernel(x: np.ndarray, method: Method) -> np.ndarray:
    if method == "bilinear":
        return np.maximum(np.float32(0), np.float32(1) - x)
    if method == "bicubic":  # Keys, a = -1/2
        near = ((1.5 * x - 2.5) * x) * x + 1.0
        far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        return np.where(x < 1, near, np.where(x < 2, far, 0)).astype(np.float32)
    y = np.maximum(x, 1e-3)
    window = 3.0 * np.sin(math.pi * y) * np.sin(math.pi * y / 3.0) / (math.pi**2 * y * y)
    return np.where(x > 3, 0, np.where(x <= 1e-3, 1, window)).astype(np.float32)


@functools.lru_cache(maxsize=1024)
def _area_taps(source: int, out: int) -> _Taps:
    """Overlaps of output pixels with input pixels, not normalized (TensorFlow's ResizeArea)."""
    scale = np.float32(source) / np.float32(out)
    low = np.arange(out, dtype=np.float32) * scale
    high = np.arange(1, out + 1, dtype=np.float32) * scale
    start, stop = np.floor(low).astype(np.intp), np.ceil(high).astype(np.intp)
    index = start + np.arange(int((stop - start).max()))[:, None]
    left, right = index.astype(np.float32), (index + 1).astype(np.float32)
    cut_left = np.where(right > high, scale, right - low)
    cut_right = np.where(right > high, high - left, np.float32(1))
    weight = np.where(index < stop, np.where(left < low, cut_left, cut_right), np.float32(0))
    return _Taps(np.minimum(index, source - 1), weight)


@functools.lru_cache(maxsize=1024)
def _lerp_taps(source: int, out: int) -> _Taps:
    """Lower and upper neighbor, and the fraction between them (TensorFlow's ResizeBilinear, half-pixel centers)."""
    scale = np.float32(source) / np.float32(out)
    position = (np.arange(out, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    floor = np.floor(position)
    lower = np.maximum(floor.astype(np.intp), 0)
    upper = np.minimum(np.ceil(position).astype(np.intp), source - 1)
    return _Taps(np.stack([lower, upper]), (position - floor)[None])


def _lerp(image: np.ndarray, rows: _Taps, columns: _Taps) -> np.ndarray:
    x = image.astype(np.float32)
    left, right = x[:, columns.position[0]], x[:, columns.position[1]]
    across = left + (right - left) * columns.weight[0][:, None]
    top, bottom = across[rows.position[0]], across[rows.position[1]]
    return top + (bottom - top) * rows.weight[0][:, None, None]
