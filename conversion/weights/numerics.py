"""Numerics that no weight file records: norm epsilon and kind of GELU per tower, and the profiles by name."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # the table of released models, which imports this module, is printed without loading jax
    from clipa_eqx.models.clip import CLIPConfig
    from clipa_eqx.models.layers import Gelu

Profile = Literal["flax", "open_clip"]
"""The code whose numerics a model follows: the reference's JAX code, or open_clip."""


@dataclass(frozen=True)
class Numerics:
    """Numerics of one tower's blocks.

    Attributes:
        norm_eps: epsilon of all norms.
        gelu: kind of GELU.
    """

    norm_eps: float
    gelu: "Gelu"

    def to_json(self) -> dict[str, float | str]:
        return {"norm_eps": self.norm_eps, "gelu": self.gelu}


class TowerNumerics(NamedTuple):
    """Numerics of both towers."""

    image: Numerics
    text: Numerics

    @property
    def profile(self) -> str:
        """The profile that both towers follow, or "custom"."""
        return next((name for name, one in PROFILES.items() if one == self.image == self.text), "custom")

    def to_json(self) -> dict[str, dict[str, float | str]]:
        return {"image": self.image.to_json(), "text": self.text.to_json()}


PROFILES: Mapping[Profile, Numerics] = {"flax": Numerics(1e-6, "tanh"), "open_clip": Numerics(1e-5, "exact")}
"""Numerics of each profile (docs/reference.md F4.4)."""


def numerics_of(config: "CLIPConfig") -> TowerNumerics:
    """The numerics in a config."""
    image, text = (Numerics(blocks.norm_eps, blocks.gelu) for blocks in (config.image.blocks, config.text.blocks))
    return TowerNumerics(image, text)


def with_numerics(config: "CLIPConfig", numerics: TowerNumerics) -> "CLIPConfig":
    """The config with other numerics."""
    image, text = config.image, config.text
    ours, theirs = (
        replace(tower.blocks, norm_eps=one.norm_eps, gelu=one.gelu)
        for tower, one in ((image, numerics.image), (text, numerics.text))
    )
    return replace(config, image=replace(image, blocks=ours), text=replace(text, blocks=theirs))
