"""Both towers in float64 numpy for comparisons: slow, one named step at a time, with options that our models lack."""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.special import erf  # a dependency of jax

from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig
from conversion.weights.tower_options import TowerOptions, image_options, text_options

Float64Array = Float64[np.ndarray, "..."]
Leaves = Mapping[str, Float64Array]
State = dict[str, Float64Array]
Kind = Literal["stem", "position", "norm", "linear", "gelu", "attention", "pool", "head", "none"]


class Step(NamedTuple):
    """One operation.

    Attributes:
        name: its name in the report.
        kind: selects the mistakes to try on it.
        reads: entries of the state that are its inputs.
        writes: the entry of the state that it sets.
        leaves: the path of each leaf, by the name that ``run`` uses.
        run: computes the value from leaves, options and inputs.
    """

    name: str
    kind: Kind
    reads: tuple[str, ...]
    writes: str
    leaves: Mapping[str, str]
    run: Callable[[Leaves, TowerOptions, tuple[Float64Array, ...]], Float64Array]


def image_steps(config: VisionConfig) -> Iterator[Step]:
    """Steps of the image tower: ``state["input"]``, patches (batch, patches, pixels), to ``state["x"]``, unit rows."""
    bias = {"bias": "image/patch/bias"} if config.patch == "linear" else {}
    yield Step("image/patch", "stem", ("input",), "x", {"weight": "image/patch/weight", **bias}, _linear)
    yield Step("image/class_token", "none", ("x",), "x", {"token": "image/class_token"}, _prepend)
    yield Step("image/+position", "position", ("x",), "x", {"table": "image/position"}, _add_positions)
    yield from _block_steps("image", config.blocks.depth)
    yield Step("image/pool", "pool", ("x",), "x", _image_pool_leaves(config), _pool)
    if config.embed is not None:
        yield Step("image/head", "head", ("x",), "x", {"weight": "image/head/weight"}, _linear)
    yield Step("image/unit_norm", "none", ("x",), "x", {}, _unit)


def text_steps(config: TextConfig) -> Iterator[Step]:
    """Steps of the text tower: ``state["input"]``, token ids (batch, length), to ``state["x"]``, unit rows."""
    yield Step("text/token", "stem", ("input",), "x", {"weight": "text/token/weight"}, _look_up)
    yield Step("text/+position", "position", ("x",), "x", {"table": "text/position"}, _add_positions)
    yield from _block_steps("text", config.blocks.depth)
    yield Step("text/norm", "norm", ("x",), "x", _norm_leaves("text/norm"), _norm)
    yield Step("text/pool", "pool", ("x",), "x", {}, _pool)
    if config.embed is not None:
        yield Step("text/head", "head", ("x",), "x", {"weight": "text/head/weight"}, _linear)
    yield Step("text/unit_norm", "none", ("x",), "x", {}, _unit)


def run_step(step: Step, leaves: Leaves, options: TowerOptions, state: State) -> Float64Array:
    """The step's value; the state is not changed."""
    return step.run(leaves, options, tuple(state[name] for name in step.reads))


def patches_of(pixels: np.ndarray, config: VisionConfig) -> Float64Array:
    """Pixels (batch, height, width, 3) as patches (batch, patches, pixels), each patch as (row, column, channel)."""
    (ph, pw), (down, across) = config.patch_size, config.grid
    cut = np.asarray(pixels, np.float64).reshape(-1, down, ph, across, pw, 3)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(len(pixels), down * across, ph * pw * 3)


def replay(config: CLIPConfig, tower: Literal["image", "text"]) -> tuple[list[Step], TowerOptions]:
    """All steps of a tower, and the options of our model."""
    if tower == "image":
        return list(image_steps(config.image)), image_options(config.image)
    return list(text_steps(config.text)), text_options(config.text)


def _block_steps(tower: str, depth: int) -> Iterator[Step]:
    for i in range(depth):
        at = f"{tower}/blocks/{i}"
        yield Step(f"{at}/norm1", "norm", ("x",), "h", _norm_leaves(f"{at}/norm1"), _norm)
        for part in ("q", "k", "v"):
            yield Step(f"{at}/attn/{part}", "linear", ("h",), part, _linear_leaves(f"{at}/attn/{part}"), _linear)
        yield Step(f"{at}/attention", "attention", ("q", "k", "v"), "h", {}, _attend)
        yield Step(f"{at}/attn/out", "linear", ("h",), "h", _linear_leaves(f"{at}/attn/out"), _linear)
        yield Step(f"{at}/+attention", "none", ("x", "h"), "x", {}, _add)
        yield Step(f"{at}/norm2", "norm", ("x",), "h", _norm_leaves(f"{at}/norm2"), _norm)
        yield Step(f"{at}/mlp/fc_in", "linear", ("h",), "h", _linear_leaves(f"{at}/mlp/fc_in"), _linear)
        yield Step(f"{at}/mlp/gelu", "gelu", ("h",), "h", {}, _gelu)
        yield Step(f"{at}/mlp/fc_out", "linear", ("h",), "h", _linear_leaves(f"{at}/mlp/fc_out"), _linear)
        yield Step(f"{at}/+mlp", "none", ("x", "h"), "x", {}, _add)


def _image_pool_leaves(config: VisionConfig) -> dict[str, str]:
    if config.pool in ("gap", "tok"):
        return _norm_leaves("image/norm")
    if config.pool == "first":
        return {}
    head = "image/map_head"
    leaves = {"probe": f"{head}/probe"}
    for part in ("attn/q", "attn/k", "attn/v", "attn/out", "norm", "mlp/fc_in", "mlp/fc_out"):
        leaves |= {f"{part}/{kind}": f"{head}/{part}/{kind}" for kind in ("weight", "bias")}
    return leaves


def _norm_leaves(path: str) -> dict[str, str]:
    return {"weight": f"{path}/weight", "bias": f"{path}/bias"}


_linear_leaves = _norm_leaves


def _linear(leaves: Leaves, options: TowerOptions, inputs: tuple[Float64Array, ...]) -> Float64Array:
    y = inputs[0] @ leaves["weight"].T
    return y + leaves["bias"] if "bias" in leaves else y


def _look_up(leaves: Leaves, options: TowerOptions, inputs: tuple[Float64Array, ...]) -> Float64Array:
    return leaves["weight"][inputs[0].astype(np.int64)]


def _prepend(leaves: Leaves, options: TowerOptions, inputs: tuple[Float64Array, ...]) -> Float64Array:
    token = np.broadcast_to(leaves["token"], (len(inputs[0]), 1, inputs[0].shape[-1]))
    return np.concatenate([token, inputs[0]], axis=1)


def _add_positions(leaves: Leaves, options: TowerOptions, inputs: tuple[Float64Array, ...]) -> Float64Array:
    return inputs[0] + leaves["table"]


def _add(leaves: Leaves, options: TowerOptions, inputs: tuple[Float64Array, ...]) -> Float64Array:
    return inputs[0] + inputs[1]


def _norm(leaves: Leaves, options: TowerOptions, inputs: tuple[Float64Array, ...]) -> Float64Array:
    x = inputs[0]
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(np.square(centered), axis=-1, keepdims=True)
    return centered / np.sqrt(variance + options.eps) * leaves["weight"] + leaves["bias"]


def _attend(leaves: Leaves, options: TowerOptions, inputs: tuple[Float64Array, ...]) -> Float64Array:
    q, k, v = (part.reshape(*part.shape[:2], options.heads, -1) for part in inputs)
    logits = np.einsum("bqhd,bkhd->bhqk", q, k, optimize=True) / np.sqrt(q.shape[-1])
    if options.is_causal:
        rows, columns = logits.shape[-2:]
        logits = np.where(np.tri(rows, columns, dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, v, optimize=True).reshape(inputs[0].shape)


def _gelu(leaves: Leaves, options: TowerOptions, inputs: tuple[Float64Array, ...]) -> Float64Array:
    x = inputs[0]
    if options.gelu == "tanh":
        return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))
    if options.gelu == "quick":
        return x / (1.0 + np.exp(-1.702 * x))
    return 0.5 * x * (1.0 + erf(x / np.sqrt(2.0)))


def _pool(leaves: Leaves, options: TowerOptions, inputs: tuple[Float64Array, ...]) -> Float64Array:
    x = inputs[0]
    if options.pool == "map":
        return _map_head(leaves, options, x)
    has_norm = "weight" in leaves
    if has_norm and options.pool_norm == "before":
        x = _norm(leaves, options, (x,))
    if options.pool == "gap":
        pooled = x[:, 0 if options.has_class_in_mean else 1 :].mean(axis=1)
    else:
        pooled = x[:, -1 if options.pool == "last" else 0]
    return _norm(leaves, options, (pooled,)) if has_norm and options.pool_norm == "after" else pooled


def _map_head(leaves: Leaves, options: TowerOptions, x: Float64Array) -> Float64Array:
    def part(name: str) -> Leaves:
        return {kind: leaves[f"{name}/{kind}"] for kind in ("weight", "bias")}

    probe = np.broadcast_to(leaves["probe"], (len(x), 1, x.shape[-1]))
    q, k, v = (_linear(part(f"attn/{name}"), options, (y,)) for name, y in (("q", probe), ("k", x), ("v", x)))
    y = _linear(part("attn/out"), options, (_attend({}, options, (q, k, v)),))
    hidden = _gelu({}, options, (_linear(part("mlp/fc_in"), options, (_norm(part("norm"), options, (y,)),)),))
    return (y + _linear(part("mlp/fc_out"), options, (hidden,)))[:, 0]


def _unit(leaves: Leaves, options: TowerOptions, inputs: tuple[Float64Array, ...]) -> Float64Array:
    return inputs[0] / (np.linalg.norm(inputs[0], axis=-1, keepdims=True) + 1e-8)
