"""The two-tower model: image and text towers and the learned temperature."""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.layers import l2_normalize
from clipa_eqx.models.text import TextConfig, TextTower
from clipa_eqx.models.vision import VisionConfig, VisionTower


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Configuration of both towers, of the initial temperature and of the initial bias.

    Attributes:
        image: the image tower.
        text: the text tower; its output width must equal the image tower's.
        temperature: initial multiplier of the logits, ``exp(log_temperature)``; 1 / 0.07 in every recipe.
        bias: initial bias of the logits, which the sigmoid loss needs, such as SigLIP's -10 with a temperature of 10;
            None for a model without a bias, for the softmax loss, which it could not change.

    Raises:
        ConfigError: towers of different output widths, a temperature that is not positive, or a bias that is not
            finite.
    """

    image: VisionConfig
    text: TextConfig
    temperature: float = 1 / 0.07
    bias: float | None = None

    def __post_init__(self) -> None:
        if self.image.output != self.text.output:
            raise ConfigError(
                f"CLIPConfig: the image tower has output width {self.image.output}, the text tower {self.text.output}; "
                "set image.embed and text.embed to the same width"
            )
        if not self.temperature > 0.0:
            raise ConfigError(f"CLIPConfig.temperature is {self.temperature}; it must be positive")
        if self.bias is not None and not math.isfinite(self.bias):
            raise ConfigError(f"CLIPConfig.bias is {self.bias}; it must be a finite number, or None for no bias")


class CLIP(eqx.Module):
    """Encoders of images and texts into one space. Every leaf is an array; all other fields are static.

    Attributes:
        image: the image tower.
        text: the text tower.
        log_temperature: natural logarithm of the multiplier of the similarities.
        config: configuration of the model (static).
        bias: added to the logits of the sigmoid loss; None in a model for the softmax loss.
    """

    image: VisionTower
    text: TextTower
    log_temperature: Float[Array, ""]
    config: CLIPConfig = eqx.field(static=True)
    bias: Float[Array, ""] | None = None

    @classmethod
    def init(cls, config: CLIPConfig, *, key: PRNGKeyArray) -> "CLIP":
        """Initialize a model at random (docs/reference.md F1.6)."""
        k_image, k_text = jr.split(key)
        return cls(
            image=VisionTower.init(config.image, key=k_image),
            text=TextTower.init(config.text, key=k_text),
            log_temperature=jnp.asarray(math.log(config.temperature), dtype=jnp.float32),
            config=config,
            bias=None if config.bias is None else jnp.asarray(config.bias, dtype=jnp.float32),
        )

    def encode_image(
        self, image: Float[Array, "height width 3"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " embed"]:
        """Embed one normalized image as a float32 vector of unit length; use ``jax.vmap`` for a batch.

        Raises:
            ConfigError: the image is not float[height width 3] of ``config.image.image_size``, such as a batch.
        """
        return l2_normalize(self.image(image, key=key))

    def encode_text(
        self, tokens: Int[Array, " seq"], *, key: PRNGKeyArray | None = None, dtype: DTypeLike | None = None
    ) -> Float[Array, " embed"]:
        """Embed one tokenized text as a float32 vector of unit length; use ``jax.vmap`` for a batch.

        ``dtype`` is the dtype of the tower's activations; None is that of the token table.

        Raises:
            ConfigError: the text is not ``config.text.length`` integers, such as a batch; or, outside of ``jit`` and
                ``vmap``, an id is not a row of the token table.
        """
        return l2_normalize(self.text(tokens, key=key, dtype=dtype))


def abstract_clip(config: CLIPConfig) -> CLIP:
    """Model whose leaves are ``jax.ShapeDtypeStruct`` objects: all shapes and types, no memory."""
    return eqx.filter_eval_shape(CLIP.init, config, key=jax.eval_shape(lambda: jr.key(0)))
