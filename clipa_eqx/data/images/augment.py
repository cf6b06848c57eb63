"""A record's bytes to one augmented training picture: what is drawn, and both ways to compute it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from clipa_eqx.data.images.affine import AffineConfig, AffineDraws, apply_affine, draw_affine
from clipa_eqx.data.images.color import ColorConfig, ColorDraws, apply_color, draw_color
from clipa_eqx.data.images.crops import CropBox, check_crop_ranges, crop_and_resize, sample_crop_box
from clipa_eqx.data.images.decode import decode_image, image_size
from clipa_eqx.data.images.fast import Region, decode_for_region, resample
from clipa_eqx.errors import ConfigError

ImageMode = Literal["exact", "fast"]


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Training pictures. ``exact`` has the reference's pixels, ``fast`` the same crops and colors but its own filter.

    Fast minus exact, measured: on synthetic photographs (JPEG of 320 to 1024 pixels to 64 and 112) 0.7 levels mean
    absolute (worst picture 1.3), PSNR 49 dB (worst 43); on the small recorded pictures 0.8 levels, 49 dB (worst 3.5 and
    33, a JPEG of pure noise). Half a level of it is the reference's truncation, which fast does not repeat.
    """

    size: tuple[int, int]  # height, width
    mode: ImageMode = "fast"
    min_area: float = 0.4  # of the picture; 1 takes the whole picture
    max_area: float = 1.0
    min_aspect: float = 0.75  # width / height
    max_aspect: float = 1.33
    color: ColorConfig | None = None
    affine: AffineConfig | None = None

    def __post_init__(self) -> None:
        check_size(self.size)
        check_crop_ranges(area=(self.min_area, self.max_area), aspect=(self.min_aspect, self.max_aspect))


@dataclass(frozen=True, kw_only=True)
class ImageDraws:
    """All that is random about one training picture."""

    box: CropBox
    color: ColorDraws | None = None
    affine: AffineDraws | None = None


def train_image(data: bytes, config: ImageConfig, rng: np.random.Generator) -> UInt8[np.ndarray, "height width 3"]:
    """Decode, crop at random, squash to ``config.size``, jitter colors. The draws do not depend on the mode.

    Raises:
        DataError: the bytes are not a whole picture (see ``decode_image``).
    """
    height, width = image_size(data)
    return render_image(data, config, draw_image(rng, height, width, config))


def draw_image(rng: np.random.Generator, height: int, width: int, config: ImageConfig) -> ImageDraws:
    """Draw for a picture of this full size, in the order box, color, affine."""
    area, aspect = (config.min_area, config.max_area), (config.min_aspect, config.max_aspect)
    return ImageDraws(
        box=sample_crop_box(rng, height, width, area=area, aspect=aspect),
        color=None if config.color is None else draw_color(rng, config.color),
        affine=None if config.affine is None else draw_affine(rng, config.affine),
    )


def render_image(data: bytes, config: ImageConfig, draws: ImageDraws) -> UInt8[np.ndarray, "height width 3"]:
    """The picture that ``draws`` describe: affine on the whole picture, then crop and resize, then color.

    Raises:
        DataError: as ``train_image``.
    """
    if config.mode == "exact":
        whole = decode_image(data)
        if draws.affine is not None:
            whole = apply_affine(whole, draws.affine)
        image = crop_and_resize(whole, draws.box, size=config.size)
    else:
        region = Region(*map(float, draws.box))
        scaled = decode_for_region(data, region, size=config.size)
        if draws.affine is not None:
            scaled = scaled._replace(pixels=apply_affine(scaled.pixels, draws.affine))
        image = resample(scaled, region, size=config.size)
    return image if draws.color is None else apply_color(image, draws.color)


def check_size(size: tuple[int, int]) -> None:
    """Raises ConfigError unless both sides are at least 1."""
    if min(size) < 1:
        raise ConfigError(f"image size={size} must be (height, width) of at least 1 pixel each")
