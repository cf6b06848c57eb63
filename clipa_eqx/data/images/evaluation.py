"""Deterministic images for evaluation."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from clipa_eqx.data.images.augment import ImageMode, check_size
from clipa_eqx.data.images.crops import central_box
from clipa_eqx.data.images.decode import decode_image, image_size
from clipa_eqx.data.images.fast import Region, decode_for_region, resample
from clipa_eqx.data.images.resize import resize, resize_small_size
from clipa_eqx.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvalImageConfig:
    """Size and resizing of evaluation images.

    Attributes:
        size: (height, width) of the result in pixels.
        resize: "squash" ignores the aspect ratio of the image; "resize_small_crop" scales the shorter side and crops
            the center. Both are bilinear with antialias. Released weights need the one they were evaluated with.
        mode: "exact" has the reference's pixels, as official weights need; ``ImageConfig`` states how much "fast"
            differs.

    Raises:
        ConfigError: a side below 1, or "resize_small_crop" with sides that differ.
    """

    size: tuple[int, int]
    resize: Literal["squash", "resize_small_crop"] = "resize_small_crop"
    mode: ImageMode = "exact"

    def __post_init__(self) -> None:
        check_size(self.size)
        if self.resize == "resize_small_crop" and self.size[0] != self.size[1]:
            raise ConfigError(f'eval image size={self.size} is not square; use resize="squash" or a square size')


def eval_image(data: bytes, config: EvalImageConfig) -> UInt8[np.ndarray, "height width 3"]:
    """Decode an image and resize it to ``config.size``; nothing is random.

    Raises:
        DataError: the bytes are not a complete image (see ``decode_image``).
    """
    if config.mode == "exact":
        return resize_for_eval(decode_image(data), config)
    height, width = image_size(data)
    out = _size_before_crop(height, width, config)
    box = central_box(*out, size=config.size)
    down, across = height / out[0], width / out[1]
    region = Region(box.top * down, box.left * across, box.height * down, box.width * across)
    return resample(decode_for_region(data, region, size=config.size), region, size=config.size)


def resize_for_eval(
    image: UInt8[np.ndarray, "in_height in_width 3"], config: EvalImageConfig
) -> UInt8[np.ndarray, "height width 3"]:
    """Resize decoded pixels to ``config.size`` in the exact mode; pixels that the crop drops are never computed."""
    out = _size_before_crop(image.shape[0], image.shape[1], config)
    box = central_box(*out, size=config.size)
    window = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    return resize(image, size=out, window=window)


def _size_before_crop(height: int, width: int, config: EvalImageConfig) -> tuple[int, int]:
    if config.resize == "squash":
        return config.size
    return resize_small_size((height, width), shorter=config.size[0])
