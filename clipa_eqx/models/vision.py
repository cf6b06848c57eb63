"""The image tower: patches, class token, positions, optional random masking, blocks, pooling, head."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.blocks import Block, BlockConfig, BlockTrace, init_blocks, run_blocks
from clipa_eqx.models.embed import keep_random_tokens, kept_tokens, sincos_2d, to_patches
from clipa_eqx.models.inputs import check_image
from clipa_eqx.models.layers import LayerNorm, Linear, dropout, lecun_normal
from clipa_eqx.models.mixed import add_parameter, prepend
from clipa_eqx.models.pool import ImagePool, MapHead, pool_image


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Configuration of the image tower.

    Attributes:
        blocks: sizes, numerics and regularization of the transformer.
        image_size: (height, width) in pixels; the tower accepts no other size (``surgery.resize_image`` changes it).
        patch_size: (height, width) in pixels; must divide ``image_size``.
        patch: "conv" (no bias, as every release) or "linear" (with bias).
        position: "sincos2d" (computed, never stored) or "learned".
        pool: "gap" (normalized mean of the patch tokens), "tok" (normalized class token), "first" (class token without
            a norm, the reference's "0") or "map" (attention over all tokens).
        mask_ratio: share of patch tokens dropped at random; active only with a key.
        embed: width of the joint space; None omits the head.

    Raises:
        ConfigError: patches that do not divide the image, a width that "sincos2d" cannot have, or a mask ratio that is
            outside [0, 1) or leaves no token.
    """

    blocks: BlockConfig
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    patch: Literal["conv", "linear"] = "conv"
    position: Literal["sincos2d", "learned"] = "sincos2d"
    pool: ImagePool = "gap"
    mask_ratio: float = 0.0
    embed: int | None

    def __post_init__(self) -> None:
        for axis, pixels, patch in zip(("height", "width"), self.image_size, self.patch_size, strict=True):
            if patch < 1 or pixels < patch or pixels % patch:
                raise ConfigError(
                    f"VisionConfig: image {axis} {pixels} is not a positive multiple of patch {axis} {patch}"
                )
        if self.position == "sincos2d" and (self.blocks.width % 4 or self.blocks.width < 8):
            raise ConfigError(f"VisionConfig: sincos2d needs a width divisible by 4 (>= 8), got {self.blocks.width}")
        if not 0.0 <= self.mask_ratio < 1.0:
            raise ConfigError(f"VisionConfig.mask_ratio is {self.mask_ratio}; it must be in [0, 1)")
        if self.mask_ratio and kept_tokens(self.patches, self.mask_ratio) < 1:
            raise ConfigError(
                f"VisionConfig.mask_ratio={self.mask_ratio} leaves no token of {self.patches}; lower the ratio"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches (down, across)."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def patches(self) -> int:
        """Number of patches per image."""
        return self.grid[0] * self.grid[1]

    @property
    def visible(self) -> int:
        """Number of tokens per image in training, the class token included."""
        return 1 + (kept_tokens(self.patches, self.mask_ratio) if self.mask_ratio else self.patches)

    @property
    def output(self) -> int:
        """Width of the embedding."""
        return self.blocks.width if self.embed is None else self.embed


class VisionInput(NamedTuple):
    """Values of one image before the first block: patch vectors, and class token and patches plus their positions."""

    stem: Float[Array, "patches dim"]
    with_position: Float[Array, "seq dim"]


class VisionOutput(NamedTuple):
    """Values of one image after the last block: pooled vector, and embedding (not of unit length)."""

    head_input: Float[Array, " dim"]
    embedding: Float[Array, " embed"]


class VisionTrace(NamedTuple):
    """All values of one image in the order of computation; ``blocks`` is stacked over depth, None if not kept."""

    stem: Float[Array, "patches dim"]
    with_position: Float[Array, "seq dim"]
    blocks: BlockTrace | None
    head_input: Float[Array, " dim"]
    embedding: Float[Array, " embed"]


class VisionTower(eqx.Module):
    """Encoder of one normalized image to an embedding that is not of unit length. Use ``jax.vmap`` for a batch.

    Attributes:
        patch: projection of the pixels of a patch to a token.
        class_token: token in front of the patches.
        position: learned positions of the class token and the patches; None if they are computed.
        blocks: transformer blocks; every leaf has a leading axis of depth.
        norm: final norm; None for the pools "first" and "map".
        map_head: attention pool; None for other pools than "map".
        head: projection to the joint space; None if ``config.embed`` is None.
        config: configuration of the tower (static).
    """

    patch: Linear
    class_token: Float[Array, " dim"]
    position: Float[Array, "seq dim"] | None
    blocks: Block
    norm: LayerNorm | None
    map_head: MapHead | None
    head: Linear | None
    config: VisionConfig = eqx.field(static=True)

    @classmethod
    def init(cls, config: VisionConfig, *, key: PRNGKeyArray) -> "VisionTower":
        """Initialize a tower at random (docs/reference.md F1.6)."""
        k_patch, k_position, k_blocks, k_map, k_head = jr.split(key, 5)
        dim, pixels = config.blocks.width, 3 * config.patch_size[0] * config.patch_size[1]
        return cls(
            patch=Linear(
                weight=lecun_normal(k_patch, (dim, pixels)), bias=jnp.zeros(dim) if config.patch == "linear" else None
            ),
            class_token=jnp.zeros(dim),
            position=None
            if config.position == "sincos2d"
            else dim**-0.5 * jr.normal(k_position, (config.patches + 1, dim)),
            blocks=init_blocks(config.blocks, key=k_blocks),
            norm=LayerNorm.init(dim, eps=config.blocks.norm_eps) if config.pool in ("gap", "tok") else None,
            map_head=MapHead.init(config.blocks, key=k_map) if config.pool == "map" else None,
            head=None
            if config.embed is None
            else Linear(weight=dim**-0.5 * jr.normal(k_head, (config.embed, dim)), bias=None),
            config=config,
        )

    def __call__(
        self, image: Float[Array, "height width 3"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " embed"]:
        """Embed one normalized image.

        Args:
            image: normalized pixels.
            key: randomness of masking, dropout and stochastic depth; None turns all of them off.

        Raises:
            ConfigError: the image is not float[height width 3] of ``config.image_size``; a batch needs ``jax.vmap``.
        """
        return self._run(image, key=key, mask_noise=None, keep_traces=False).embedding

    def trace(
        self,
        image: Float[Array, "height width 3"],
        *,
        key: PRNGKeyArray | None = None,
        mask_noise: Float[Array, " patches"] | None = None,
    ) -> VisionTrace:
        """Embed one image like a call, and return all intermediate values.

        Args:
            image: normalized pixels.
            key: randomness of masking, dropout and stochastic depth; None turns all of them off.
            mask_noise: noise that decides which patches are masked, instead of noise sampled from ``key``.

        Raises:
            ConfigError: the image is not float[height width 3] of ``config.image_size``; a batch needs ``jax.vmap``.
        """
        return self._run(image, key=key, mask_noise=mask_noise, keep_traces=True)

    def _run(
        self,
        image: Float[Array, "height width 3"],
        *,
        key: PRNGKeyArray | None,
        mask_noise: Float[Array, " patches"] | None,
        keep_traces: bool,
    ) -> VisionTrace:
        config = self.config
        k_drop, k_mask, k_blocks = (None,) * 3 if key is None else jr.split(key, 3)
        before = self.before_blocks(image)
        x = dropout(before.with_position, config.blocks.dropout, key=k_drop)
        if mask_noise is None and k_mask is not None and config.mask_ratio:
            mask_noise = jr.uniform(k_mask, (config.patches,))
        if mask_noise is not None:
            kept, _ = keep_random_tokens(x[1:], mask_noise, kept_tokens(config.patches, config.mask_ratio))
            x = jnp.concatenate([x[:1], kept])
        x, blocks = run_blocks(self.blocks, x, config=config.blocks, key=k_blocks, keep_traces=keep_traces)
        after = self.after_blocks(x)
        return VisionTrace(before.stem, before.with_position, blocks, after.head_input, after.embedding)

    def before_blocks(self, image: Float[Array, "height width 3"]) -> VisionInput:
        """Compute the input of the first block, without dropout and masking.

        Raises:
            ConfigError: the image is not float[height width 3] of ``config.image_size``; a batch needs ``jax.vmap``.
        """
        config = self.config
        check_image(image, size=config.image_size)
        stem = self.patch(to_patches(image, config.patch_size))
        tokens = prepend(self.class_token, stem)
        positions = self._positions(jnp.promote_types(stem.dtype, self.class_token.dtype))
        return VisionInput(stem, add_parameter(tokens, positions))

    def after_blocks(self, x: Float[Array, "seq dim"]) -> VisionOutput:
        """Pool and project the output ``x`` of the last block."""
        pooled = pool_image(x, self.config.pool, norm=self.norm, map_head=self.map_head)
        return VisionOutput(pooled, pooled if self.head is None else self.head(pooled))

    def _positions(self, computed: DTypeLike) -> Float[Array, "seq dim"]:
        """The position table; one that is computed has the dtype ``computed``."""
        if self.position is not None:
            return self.position
        table = sincos_2d(*self.config.grid, self.config.blocks.width)
        return jnp.asarray(np.concatenate([np.zeros_like(table[:1]), table]), computed)
