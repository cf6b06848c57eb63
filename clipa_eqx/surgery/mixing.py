"""Arithmetic on weights: models interpolated or averaged, and weights in another floating-point type."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.clip import CLIP
from clipa_eqx.surgery.configuration import NUMERIC_FIELDS, config_changes, differing, operated, rebuild
from clipa_eqx.surgery.report import Move, Operated, keep
from clipa_eqx.trees import leaves_by_path


def interpolate(model: CLIP, other: CLIP, *, alpha: float) -> Operated:
    """Compute ``(1 - alpha) * model + alpha * other`` leaf by leaf, such as zero-shot and fine-tuned weights (WiSE-FT).

    The ends are the leaves of ``model`` at 0 and of ``other`` at 1, bit for bit. The temperature is interpolated as its
    logarithm. The configuration is that of ``model``.

    Args:
        model: model at 0.
        other: model at 1.
        alpha: share of ``other``, from 0 to 1.

    Raises:
        ConfigError: ``alpha`` is outside of [0, 1], or ``average`` would refuse the models.

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv:2109.01903.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"interpolate: alpha is {alpha}; it must be from 0 (the first model) to 1 (the other)")
    _check_alike((model, other))
    mixed = _weighted((model, other), (1 - alpha, alpha))
    return operated(model, mixed, (f"leaves: {alpha:g} of the way to another",), moves=_kept(model))


def average(models: Sequence[CLIP], *, weights: Sequence[float] | None = None) -> Operated:
    """Average models leaf by leaf, such as several fine-tunes of one model (a soup).

    Leaves that are equal in all models stay bit for bit, and so does a model whose weight is all of the sum. Sums are
    float32 or wider. The configuration is that of the first model; the report compares with that model.

    Args:
        models: models of equal leaves, one or more.
        weights: weight of each model, not negative; they are divided by their sum. None is one each.

    Raises:
        ConfigError: there are no models; weights that are no such numbers; or models whose leaves, heads, pooling,
            ``norm_eps`` or ``gelu`` differ.

    Source: Wortsman et al., "Model soups", arXiv:2203.05482.
    """
    given = [1.0] * len(models) if weights is None else list(weights)
    if not models or len(given) != len(models):
        raise ConfigError(f"average: {len(models)} models and {len(given)} weights; one or more models, a weight each")
    if not all(math.isfinite(one) and one >= 0 for one in given) or not sum(given) > 0:
        raise ConfigError(f"average: the weights are {given}; they must be finite, not negative, and not all zero")
    _check_alike(models)
    shares = [one / sum(given) for one in given]
    what = ", ".join(f"{share:g}" for share in shares)
    changes = () if len(models) == 1 else (f"leaves: average of {len(models)} models, shares {what}",)
    return operated(models[0], _weighted(models, shares), changes, moves=_kept(models[0]))


def cast(model: CLIP, dtype: DTypeLike) -> Operated:
    """Convert every leaf to a floating-point type, such as bfloat16 for half of the memory.

    Training keeps float32 leaves and computes in bfloat16 by its own setting; this is for inference and files.

    Raises:
        ConfigError: ``dtype`` is not a floating-point type.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ConfigError(f"cast: {jnp.dtype(dtype).name} is not a floating-point type, such as float32 or bfloat16")
    leaves = leaves_by_path(model)
    new = {path: leaf if leaf.dtype == dtype else leaf.astype(dtype) for path, leaf in leaves.items()}
    count = sum(new[path] is not leaf for path, leaf in leaves.items())
    changes = (f"leaves: {count} of {len(leaves)} cast to {jnp.dtype(dtype).name}",) if count else ()
    return operated(model, rebuild(model.config, new) if count else model, changes, moves=_kept(model))


def _kept(model: CLIP) -> dict[str, Move]:
    return dict.fromkeys(leaves_by_path(model), keep)


def _check_alike(models: Sequence[CLIP]) -> None:
    first = models[0]
    for i, model in enumerate(models[1:], 2):
        problems = differing(leaves_by_path(model), leaves_by_path(first))
        problems += [
            f"{name}: {theirs!r} found, {ours!r} wanted"
            for name, ours, theirs in config_changes(first.config, model.config)
            if name.rsplit(".", 1)[-1] in NUMERIC_FIELDS
        ]
        if problems:
            raise ConfigError(
                f"model {i} of {len(models)} cannot be mixed with the first; change it by surgery before:\n  "
                + "\n  ".join(problems)
            )


def _weighted(models: Sequence[CLIP], shares: Sequence[float]) -> CLIP:
    if 1.0 in shares:
        return rebuild(models[0].config, leaves_by_path(models[shares.index(1.0)]))
    every = [leaves_by_path(model) for model in models]
    leaves = {path: _mean([one[path] for one in every], list(shares)) for path in every[0]}
    return rebuild(models[0].config, leaves)


@jax.jit
def _mean(leaves: Sequence[Array], shares: Sequence[Any]) -> Array:
    """Weighted mean as differences from the first leaf: what is equal everywhere is not rounded."""
    wide: Any = jnp.promote_types(leaves[0].dtype, jnp.float32)
    first = leaves[0].astype(wide)
    steps = [share * (leaf.astype(wide) - first) for share, leaf in zip(shares[1:], leaves[1:], strict=True)]
    step = sum(steps, jnp.zeros_like(first))
    return jnp.where(step == 0, first, first + step).astype(leaves[0].dtype)
