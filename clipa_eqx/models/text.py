"""The text tower: token table, positions, blocks without any mask, final norm, pooling, head."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.blocks import Block, BlockConfig, BlockTrace, init_blocks, run_blocks
from clipa_eqx.models.embed import TokenEmbedding, sincos_1d
from clipa_eqx.models.inputs import check_tokens
from clipa_eqx.models.layers import LayerNorm, Linear, dropout
from clipa_eqx.models.mixed import add_parameter
from clipa_eqx.models.pool import TextPool, pool_text


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Configuration of the text tower.

    Attributes:
        blocks: sizes, numerics and regularization of the transformer.
        length: tokens per text, ``[CLS]`` and padding included (``surgery.resize_text`` changes it).
        vocab: rows of the token table; at least the tokenizer's vocabulary (32,000 in every release).
        position: "learned" (as every release) or "sincos1d" (computed, never stored).
        pool: "last" (as every release: the last position, padding for short captions), "tok" (``[CLS]``) or "gap" (mean
            of all positions except ``[CLS]``).
        embed: width of the joint space; None omits the head.

    Raises:
        ConfigError: a length too short for the pooling, an empty vocabulary, or an odd width for "sincos1d".
    """

    blocks: BlockConfig
    length: int
    vocab: int
    position: Literal["learned", "sincos1d"] = "learned"
    pool: TextPool = "last"
    embed: int | None

    def __post_init__(self) -> None:
        shortest = 2 if self.pool == "gap" else 1
        if self.length < shortest:
            raise ConfigError(f"TextConfig.length is {self.length}; pool={self.pool!r} needs at least {shortest}")
        if self.vocab < 1:
            raise ConfigError(f"TextConfig.vocab is {self.vocab}; it must be at least 1")
        if self.position == "sincos1d" and (self.blocks.width % 2 or self.blocks.width < 4):
            raise ConfigError(f"TextConfig: sincos1d needs an even width (>= 4), got {self.blocks.width}")

    @property
    def output(self) -> int:
        """Width of the embedding."""
        return self.blocks.width if self.embed is None else self.embed


class TextInput(NamedTuple):
    """Values of one text before the first block: token vectors, and their sum with the positions."""

    vectors: Float[Array, "seq dim"]
    with_position: Float[Array, "seq dim"]


class TextOutput(NamedTuple):
    """Values of one text after the last block: normalized tokens, pooled vector, embedding (not of unit length)."""

    norm: Float[Array, "seq dim"]
    head_input: Float[Array, " dim"]
    embedding: Float[Array, " embed"]


class TextTrace(NamedTuple):
    """All values of one text in the order of computation; ``blocks`` is stacked over depth, None if not kept."""

    vectors: Float[Array, "seq dim"]
    blocks: BlockTrace | None
    norm: Float[Array, "seq dim"]
    head_input: Float[Array, " dim"]
    embedding: Float[Array, " embed"]


class TextTower(eqx.Module):
    """Encoder of one text: token ids to an embedding that is not of unit length. Use ``jax.vmap`` for a batch.

    Attributes:
        token: token table.
        position: learned positions; None if they are computed.
        blocks: transformer blocks; every leaf has a leading axis of depth.
        norm: final norm.
        head: projection to the joint space; None if ``config.embed`` is None.
        config: configuration of the tower (static).
    """

    token: TokenEmbedding
    position: Float[Array, "seq dim"] | None
    blocks: Block
    norm: LayerNorm
    head: Linear | None
    config: TextConfig = eqx.field(static=True)

    @classmethod
    def init(cls, config: TextConfig, *, key: PRNGKeyArray) -> "TextTower":
        """Initialize a tower at random (docs/reference.md F1.6)."""
        k_token, k_position, k_blocks, k_head = jr.split(key, 4)
        dim = config.blocks.width
        return cls(
            token=TokenEmbedding(weight=0.02 * jr.normal(k_token, (config.vocab, dim))),
            position=None if config.position == "sincos1d" else 0.01 * jr.normal(k_position, (config.length, dim)),
            blocks=init_blocks(config.blocks, key=k_blocks),
            norm=LayerNorm.init(dim, eps=config.blocks.norm_eps),
            head=None
            if config.embed is None
            else Linear(weight=dim**-0.5 * jr.normal(k_head, (config.embed, dim)), bias=None),
            config=config,
        )

    def __call__(
        self, tokens: Int[Array, " seq"], *, key: PRNGKeyArray | None = None, dtype: DTypeLike | None = None
    ) -> Float[Array, " embed"]:
        """Embed one text.

        Args:
            tokens: token ids.
            key: randomness of dropout and stochastic depth; None turns both off.
            dtype: dtype of the activations; None is that of the token table. (The image tower has it from the pixels.)

        Raises:
            ConfigError: the text is not ``config.length`` integers (a batch needs ``jax.vmap``); or, outside of ``jit``
                and ``vmap``, an id is not a row of the token table.
        """
        return self._run(tokens, key=key, dtype=dtype, keep_traces=False).embedding

    def trace(
        self, tokens: Int[Array, " seq"], *, key: PRNGKeyArray | None = None, dtype: DTypeLike | None = None
    ) -> TextTrace:
        """Embed one text like a call, and return all intermediate values.

        Raises:
            ConfigError: the text is not ``config.length`` integers (a batch needs ``jax.vmap``); or, outside of ``jit``
                and ``vmap``, an id is not a row of the token table.
        """
        return self._run(tokens, key=key, dtype=dtype, keep_traces=True)

    def _run(
        self, tokens: Int[Array, " seq"], *, key: PRNGKeyArray | None, dtype: DTypeLike | None, keep_traces: bool
    ) -> TextTrace:
        config = self.config
        k_drop, k_blocks = (None,) * 2 if key is None else jr.split(key, 2)
        before = self.before_blocks(tokens, dtype=dtype)
        x = dropout(before.with_position, config.blocks.dropout, key=k_drop)
        x, blocks = run_blocks(self.blocks, x, config=config.blocks, key=k_blocks, keep_traces=keep_traces)
        after = self.after_blocks(x)
        return TextTrace(before.vectors, blocks, after.norm, after.head_input, after.embedding)

    def before_blocks(self, tokens: Int[Array, " seq"], *, dtype: DTypeLike | None = None) -> TextInput:
        """Compute the input of the first block, without dropout.

        Args:
            tokens: token ids.
            dtype: dtype of the result; None is that of the token table.

        Raises:
            ConfigError: the text is not ``config.length`` integers (a batch needs ``jax.vmap``); or, outside of ``jit``
                and ``vmap``, an id is not a row of the token table.
        """
        check_tokens(tokens, length=self.config.length, vocab=self.config.vocab)
        vectors = self.token(tokens).astype(self.token.weight.dtype if dtype is None else dtype)
        positions = self._positions(jnp.promote_types(vectors.dtype, self.token.weight.dtype))
        return TextInput(vectors, add_parameter(vectors, positions))

    def after_blocks(self, x: Float[Array, "seq dim"]) -> TextOutput:
        """Normalize, pool and project the output ``x`` of the last block."""
        normed = self.norm(x)
        pooled = pool_text(normed, self.config.pool)
        return TextOutput(normed, pooled, pooled if self.head is None else self.head(pooled))

    def _positions(self, computed: DTypeLike) -> Float[Array, "seq dim"]:
        """The position table; one that is computed has the dtype ``computed``."""
        if self.position is not None:
            return self.position
        return jnp.asarray(sincos_1d(self.config.length, self.config.blocks.width), computed)
