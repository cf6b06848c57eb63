"""The two-tower model: image and text towers and the learned temperature."""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.layers import l2_normalize
from clipa_eqx.models.text import TextConfig, TextTower
from clipa_eqx.models.vision import VisionConfig, VisionTower


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Both towers and the start of the temperature.

    Attributes:
        image: the image tower.
        text: the text tower; its output width must equal the image tower's.
        temperature: initial multiplier of the logits, ``exp(log_temperature)``; 1 / 0.07 in every recipe.
    """

    image: VisionConfig
    text: TextConfig
    temperature: float = 1 / 0.07

    def __post_init__(self) -> None:
        if self.image.output != self.text.output:
            raise ConfigError(
                f"CLIPConfig: the image tower gives {self.image.output} numbers, the text tower {self.text.output}; "
                "set image.embed and text.embed to the same width"
            )
        if not self.temperature > 0.0:
            raise ConfigError(f"CLIPConfig.temperature is {self.temperature}; it must be positive")


class CLIP(eqx.Module):
    """Image and text encoders into one space. Every leaf is an array; all else is static."""

    image: VisionTower
    text: TextTower
    log_temperature: Float[Array, ""]
    config: CLIPConfig = eqx.field(static=True)

    @classmethod
    def init(cls, config: CLIPConfig, *, key: PRNGKeyArray) -> "CLIP":
        """A randomly initialized model (docs/reference.md F1.6)."""
        k_image, k_text = jr.split(key)
        return cls(
            image=VisionTower.init(config.image, key=k_image),
            text=TextTower.init(config.text, key=k_text),
            log_temperature=jnp.asarray(math.log(config.temperature), dtype=jnp.float32),
            config=config,
        )

    def encode_image(
        self, image: Float[Array, "height width 3"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " embed"]:
        """Unit-length float32 embedding of one normalized image; ``jax.vmap`` it over a batch."""
        return l2_normalize(self.image(image, key=key))

    def encode_text(self, tokens: Int[Array, " seq"], *, key: PRNGKeyArray | None = None) -> Float[Array, " embed"]:
        """Unit-length float32 embedding of one tokenized text; ``jax.vmap`` it over a batch."""
        return l2_normalize(self.text(tokens, key=key))


def abstract_clip(config: CLIPConfig) -> CLIP:
    """The model's shapes without its memory: every leaf a ``jax.ShapeDtypeStruct``."""
    return eqx.filter_eval_shape(CLIP.init, config, key=jax.eval_shape(lambda: jr.key(0)))
