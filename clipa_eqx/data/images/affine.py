"""Random rotation, scale and shift of an icon on a plain background."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clipa_eqx.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AffineConfig:
    """Ranges of random affine changes; for icons only, because uncovered pixels are filled with the corner color.

    Attributes:
        max_rotate_degrees: largest rotation, in each direction.
        scale: (least, most) factor of the size; its logarithm is sampled uniformly.
        max_shift: largest shift as a share of the side, in each direction.

    Raises:
        ConfigError: an empty or impossible range.
    """

    max_rotate_degrees: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    max_shift: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_rotate_degrees <= 180:
            raise ConfigError(f"affine.max_rotate_degrees={self.max_rotate_degrees} must be between 0 and 180")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"affine.scale={self.scale} must be (least, most) with 0 < least <= most")
        if not 0 <= self.max_shift < 1:
            raise ConfigError(f"affine.max_shift={self.max_shift} must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class AffineChange:
    """Affine change of one image around its center.

    Attributes:
        degrees: counterclockwise rotation.
        scale: factor of the size.
        shift_right: shift as a share of the width, positive to the right.
        shift_down: shift as a share of the height, positive downwards.
    """

    degrees: float = 0.0
    scale: float = 1.0
    shift_right: float = 0.0
    shift_down: float = 0.0


def sample_affine(rng: np.random.Generator, config: AffineConfig) -> AffineChange:
    """Sample the change of one image; always takes four values from ``rng``."""
    turn, grow, right, down = rng.random(4).tolist()
    low, high = map(math.log, config.scale)
    return AffineChange(
        degrees=config.max_rotate_degrees * (2 * turn - 1),
        scale=math.exp(low + (high - low) * grow),
        shift_right=config.max_shift * (2 * right - 1),
        shift_down=config.max_shift * (2 * down - 1),
    )


def apply_affine(
    image: UInt8[np.ndarray, "height width 3"], change: AffineChange
) -> UInt8[np.ndarray, "height width 3"]:
    """Transform an image bilinearly at the same size; uncovered pixels get the median color of the four corners.

    Without any change the image itself is returned.
    """
    if change == AffineChange():
        return image
    height, width = image.shape[:2]
    corners = np.sort(image[:: max(height - 1, 1), :: max(width - 1, 1)].reshape(-1, 3), axis=0).astype(int)
    # The median as an integer; np.median takes a third of the time of this function.
    red, green, blue = ((corners[(len(corners) - 1) // 2] + corners[len(corners) // 2]) // 2).tolist()
    fill = (red, green, blue)
    angle = math.radians(change.degrees)
    cos, sin = math.cos(angle) / change.scale, math.sin(angle) / change.scale
    center_x, center_y = width / 2, height / 2
    to_x, to_y = center_x + change.shift_right * width, center_y + change.shift_down * height
    # Pillow takes the inverse map, from output to input: undo the shift, then rotation and scale (rows point down).
    back = (cos, -sin, center_x - cos * to_x + sin * to_y, sin, cos, center_y - sin * to_x - cos * to_y)
    turned = Image.fromarray(image).transform(
        (width, height), Image.Transform.AFFINE, back, resample=Image.Resampling.BILINEAR, fillcolor=fill
    )
    return np.array(turned)
