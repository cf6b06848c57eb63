"""Random rotation, scale and shift of a drawing on a plain background."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clipa_eqx.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AffineConfig:
    """Ranges of the draws; for drawings only, because what comes into view is filled with the corner color."""

    max_rotate_degrees: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)  # drawn uniformly in the logarithm
    max_shift: float = 0.0  # of the side, each way

    def __post_init__(self) -> None:
        if not 0 <= self.max_rotate_degrees <= 180:
            raise ConfigError(f"affine.max_rotate_degrees={self.max_rotate_degrees} must be between 0 and 180")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"affine.scale={self.scale} must be (least, most) with 0 < least <= most")
        if not 0 <= self.max_shift < 1:
            raise ConfigError(f"affine.max_shift={self.max_shift} must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class AffineDraws:
    """One picture's transformation around its center; shifts as shares of the sides, right and down positive."""

    degrees: float = 0.0  # anticlockwise
    scale: float = 1.0
    shift_right: float = 0.0
    shift_down: float = 0.0


def draw_affine(rng: np.random.Generator, config: AffineConfig) -> AffineDraws:
    """Draw for one picture; always takes four values from ``rng``."""
    turn, grow, right, down = rng.random(4).tolist()
    low, high = map(math.log, config.scale)
    return AffineDraws(
        degrees=config.max_rotate_degrees * (2 * turn - 1),
        scale=math.exp(low + (high - low) * grow),
        shift_right=config.max_shift * (2 * right - 1),
        shift_down=config.max_shift * (2 * down - 1),
    )


def apply_affine(image: UInt8[np.ndarray, "height width 3"], draws: AffineDraws) -> UInt8[np.ndarray, "height width 3"]:
    """Transform bilinearly at the same size; uncovered pixels take the median color of the four corners."""
    if draws == AffineDraws():
        return image
    height, width = image.shape[:2]
    corners = np.median(image[:: max(height - 1, 1), :: max(width - 1, 1)].reshape(-1, 3), axis=0)
    fill = (int(corners[0]), int(corners[1]), int(corners[2]))
    angle = math.radians(draws.degrees)
    cos, sin = math.cos(angle) / draws.scale, math.sin(angle) / draws.scale
    center_x, center_y = width / 2, height / 2
    to_x, to_y = center_x + draws.shift_right * width, center_y + draws.shift_down * height
    # Pillow wants the way back, from output to input: undo the shift, then the rotation and the scale (rows go down).
    back = (cos, -sin, center_x - cos * to_x + sin * to_y, sin, cos, center_y - sin * to_x - cos * to_y)
    turned = Image.fromarray(image).transform(
        (width, height), Image.Transform.AFFINE, back, resample=Image.Resampling.BILINEAR, fillcolor=fill
    )
    return np.array(turned)
