"""LoRA: a product of two narrow factors next to weights of linear layers; attached, merged, and taken apart again."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.clip import CLIP
from clipa_eqx.models.layers import Linear
from clipa_eqx.models.mixed import add_parameter, product
from clipa_eqx.surgery.configuration import operated, validate
from clipa_eqx.surgery.report import Operated, keep
from clipa_eqx.trees import match_any

LORA_FACTORS = r".*/lora_(down|up)"
"""Pattern of the paths of all factors, for rules: ``schedules=((LORA_FACTORS, Cosine()), (".*", None))`` of an
``OptimConfig`` trains the factors alone."""


class LoraLinear(eqx.Module):
    """A linear layer with factors: ``x @ weight.T + bias + scale * (x @ lora_down.T) @ lora_up.T``.

    In a stack of blocks all leaves have a leading axis of depth. ``weight`` and ``bias`` keep the paths that they have
    in a ``Linear``.

    Attributes:
        weight: the weight of the plain layer, which training leaves unchanged.
        bias: the bias of the plain layer, or None.
        lora_down: factor from the input to the rank.
        lora_up: factor from the rank to the output; zero at first.
        scale: alpha / rank (static).
    """

    weight: Float[Array, "*depth out in"]
    bias: Float[Array, "*depth out"] | None
    lora_down: Float[Array, "*depth rank in"]
    lora_up: Float[Array, "*depth out rank"]
    scale: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*seq in"]) -> Float[Array, "*seq out"]:
        y = product(x, self.weight)
        y = y if self.bias is None else add_parameter(y, self.bias)
        # After the bias, so that zeros are added to a value that is rounded as in the plain layer.
        return y + self.scale * product(product(x, self.lora_down), self.lora_up)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapters:
    """Factors alone, without the model: what a LoRA fine-tune has learned.

    Attributes:
        factors: (down, up) by the path of the linear layer, such as ``image/blocks/attn/q``; stacked over depth there.
        alpha: strength; the product of the factors is multiplied by alpha / rank.
    """

    factors: Mapping[str, tuple[Array, Array]]
    alpha: float


def lora(model: CLIP, *, rank: int, alpha: float, targets: Sequence[str], key: PRNGKeyArray) -> Operated:
    """Add LoRA factors to the weights of linear layers. Until training changes ``lora_up``, all outputs stay the same.

    They are the same bits in float32. In bfloat16 every operation gives the same bits, but a compiler that keeps more
    bits between operations may fuse them differently than without factors, and then outputs differ by its rounding.
    Every layer has its own random ``lora_down``, uniform within +-1 / sqrt(in). Layers of a stack have one too.

    Args:
        model: model without factors.
        rank: width between the factors.
        alpha: strength; the product of the factors is multiplied by alpha / rank.
        targets: patterns of the paths of weights, such as ``image/blocks/attn/(q|v)/weight`` (``trees.match_any``).
        key: randomness of the factors.

    Raises:
        ConfigError: a rank below 1, an alpha that is not positive, a model that has factors already, or a pattern that
            matches no weight, another leaf than the weight of a linear layer, or some layers of a stack only.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
    """
    if rank < 1 or not 0 < alpha < math.inf:
        raise ConfigError(f"lora: rank {rank} and alpha {alpha}; expected a rank of at least 1 and a positive alpha")
    layers = _linear_layers(model)
    chosen = _chosen(model, layers, targets)
    factors: dict[str, tuple[Array, Array]] = {}
    for path, one in zip(chosen, jr.split(key, len(chosen)), strict=True):
        weight = layers[path].weight
        *depth, out, width = weight.shape
        bound = width**-0.5
        down = jr.uniform(one, (*depth, rank, width), jnp.float32, minval=-bound, maxval=bound).astype(weight.dtype)
        factors[path] = (down, jnp.zeros((*depth, out, rank), weight.dtype))
    return attach(model, Adapters(factors=factors, alpha=alpha))


def attach(model: CLIP, adapters: Adapters) -> Operated:
    """Add given factors, such as those of an earlier fine-tune, to a model without factors.

    Raises:
        ConfigError: the model has factors already, or factors fit no linear layer of it; the message lists all.
    """
    layers = _linear_layers(model)
    problems = _misfits(layers, adapters)
    if problems:
        raise ConfigError("the adapters do not fit this model:\n  " + "\n  ".join(problems))

    def wrap(path: str, layer: Linear | LoraLinear) -> Linear | LoraLinear:
        if path not in adapters.factors:
            return layer
        down, up = adapters.factors[path]
        scale = adapters.alpha / down.shape[-2]
        return LoraLinear(weight=layer.weight, bias=layer.bias, lora_down=down, lora_up=up, scale=scale)

    changes = [f"{path}/weight: LoRA of rank {down.shape[-2]} added" for path, (down, _) in adapters.factors.items()]
    return _with_report(model, _map_layers(wrap, model), changes)


def detach(model: CLIP) -> tuple[CLIP, Adapters]:
    """Take a model with factors apart: the model that it was before, bit for bit, and the factors.

    Raises:
        ConfigError: the model has no factors, or they have several values of alpha.
    """
    found = _with_factors(model)
    alphas = {layer.scale * layer.lora_down.shape[-2] for layer in found.values()}
    if len(alphas) > 1:
        raise ConfigError(f"detach: the factors have different values of alpha, {sorted(alphas)}; merge the model")
    factors = {path: (layer.lora_down, layer.lora_up) for path, layer in found.items()}
    plain = _map_layers(_plain, model)
    validate(plain)
    return plain, Adapters(factors=factors, alpha=alphas.pop())


def merge(model: CLIP) -> Operated:
    """Add the product of the factors to the weights; the result is a plain model without factors.

    Raises:
        ConfigError: the model has no factors.
    """
    found = _with_factors(model)

    def add(path: str, layer: Linear | LoraLinear) -> Linear | LoraLinear:
        if not isinstance(layer, LoraLinear):
            return layer
        return _linear(_moved(layer.weight, layer.lora_down, layer.lora_up, layer.scale), layer.bias)

    return _with_report(model, _map_layers(add, model), [f"{path}/weight: LoRA merged" for path in found])


def merged(model: CLIP) -> CLIP:
    """Return the plain model of one that may have factors: merged if it has, else the same."""
    return merge(model).model if has_factors(model) else model


def has_factors(model: CLIP) -> bool:
    """Whether a linear layer of the model has factors."""
    return any(isinstance(layer, LoraLinear) for layer in _linear_layers(model).values())


def is_factor(path: str) -> bool:
    """Whether the path of a leaf is that of a factor."""
    return re.fullmatch(LORA_FACTORS, path) is not None


def ranks(model: CLIP) -> dict[str, int]:
    """The rank of the factors of each linear layer that has some, by its path; the model may be abstract."""
    layers = _linear_layers(model).items()
    return {path: layer.lora_down.shape[-2] for path, layer in layers if isinstance(layer, LoraLinear)}


def unmerge(model: CLIP, adapters: Adapters) -> Operated:
    """Subtract the product of factors from weights that ``merge`` added it to, and attach the factors.

    The weights are those before ``merge`` except for rounding: a sum does not keep the last bits of its smaller part.
    ``detach`` returns the weights before ``merge`` bit for bit, from the model that was merged.

    Raises:
        ConfigError: the model has factors already, or factors fit no linear layer of it; the message lists all.
    """
    attached = attach(model, adapters).model

    def subtracted(path: str, layer: Linear | LoraLinear) -> Linear | LoraLinear:
        if not isinstance(layer, LoraLinear):
            return layer
        weight = _moved(layer.weight, layer.lora_down, layer.lora_up, -layer.scale)
        return dataclasses.replace(layer, weight=weight)

    changes = [f"{path}/weight: LoRA subtracted and attached" for path in adapters.factors]
    return _with_report(model, _map_layers(subtracted, attached), changes)


def _with_report(before: CLIP, after: CLIP, changes: Sequence[str]) -> Operated:
    weights = {f"{path}/weight": keep for path in _linear_layers(after)}
    return operated(before, after, changes, moves=weights, plain=_map_layers(_plain, after))


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _is_layer(node: Any) -> bool:
    return isinstance(node, Linear | LoraLinear)


def _linear_layers(tree: Any) -> dict[str, Linear | LoraLinear]:
    nodes = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_layer)[0]
    return {_path(keys): node for keys, node in nodes if _is_layer(node)}


def _map_layers(change: Callable[[str, Linear | LoraLinear], Linear | LoraLinear], tree: CLIP) -> CLIP:
    def visit(keys: Any, node: Any) -> Any:
        return change(_path(keys), node) if _is_layer(node) else node

    return jax.tree_util.tree_map_with_path(visit, tree, is_leaf=_is_layer)


def _with_factors(model: CLIP) -> dict[str, LoraLinear]:
    found = {path: layer for path, layer in _linear_layers(model).items() if isinstance(layer, LoraLinear)}
    if not found:
        raise ConfigError("the model has no LoRA factors; add some with surgery.lora or surgery.attach")
    return found


def _plain(path: str, layer: Linear | LoraLinear) -> Linear | LoraLinear:
    return _linear(layer.weight, layer.bias)


def _linear(weight: Array, bias: Array | None) -> Linear:
    """A plain layer, or a stack of them, whose leaves have more axes than a new ``Linear`` accepts."""
    # Traced only: process 0 takes the model of several processes apart alone, and must run nothing on their devices.
    one = jax.eval_shape(lambda: Linear(weight=jnp.zeros((1, 1)), bias=None if bias is None else jnp.zeros(1)))
    return jax.tree.unflatten(jax.tree.structure(one), [weight] if bias is None else [weight, bias])


def _moved(weight: Array, down: Array, up: Array, scale: float) -> Array:
    wide = jnp.promote_types(weight.dtype, jnp.float32)
    step = jnp.einsum("...or,...ri->...oi", up.astype(wide), down.astype(wide), precision="highest")
    return (weight.astype(wide) + scale * step).astype(weight.dtype)


def _misfits(layers: Mapping[str, Linear | LoraLinear], adapters: Adapters) -> list[str]:
    problems: list[str] = []
    for path, (down, up) in adapters.factors.items():
        layer = layers.get(path)
        if layer is None:
            problems.append(f"{path}: not a linear layer of the model")
        elif isinstance(layer, LoraLinear):
            problems.append(f"{path}: has factors already; surgery.merge or surgery.detach comes first")
        else:
            *depth, out, width = layer.weight.shape
            rank = down.shape[-2] if down.ndim > 1 else 0
            wanted = (*depth, rank, width), (*depth, out, rank)
            if not rank or (down.shape, up.shape) != wanted:
                problems.append(f"{path}: factors {down.shape} and {up.shape} for a weight {layer.weight.shape}")
    return problems or ([] if adapters.factors else ["there are no factors"])


def _chosen(model: CLIP, layers: Mapping[str, Linear | LoraLinear], targets: Sequence[str]) -> list[str]:
    """Paths of the layers that the targets name."""
    if not targets:
        raise ConfigError("lora: targets is empty; name weights, such as 'image/blocks/attn/(q|v)/weight'")
    decided = match_any(targets, model, what="lora.targets")
    weights = {f"{path}/weight" for path in layers}
    named = [path for path, value in decided.items() if value is not False]
    problems = [f"{path}: not the weight of a linear layer" for path in named if path not in weights]
    problems += [
        f"{path}: some layers only; factors are stacked, so name the path without the number of a layer"
        for path in named
        if isinstance(decided[path], tuple)
    ]
    if problems:
        raise ConfigError("lora.targets names leaves that cannot have factors:\n  " + "\n  ".join(problems))
    return [path.removesuffix("/weight") for path in named]
