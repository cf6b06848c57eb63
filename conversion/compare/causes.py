"""Why one step of two models differs: known mistakes of converters, each tested by computing the step with it."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from conversion.compare.replay import Array, State, Step, run_step
from conversion.weights.tower_options import Pool, ReplayGelu, TowerOptions

EPS = "layer norm epsilon"
GELU = "GELU kind"
NORM_PLACE = "norm before or after pooling"
CLASS_IN_MEAN = "class token in the mean"
POOL = "pooling kind"
CAUSAL = "causal mask"
HEADS = "number of heads"
DENOMINATOR = "sin-cos denominator q or q-1"
NO_POSITION = "missing positions"
SWAPPED_AXES = "sin-cos axes x and y swapped"
TRANSPOSED = "transposed weight"
PERMUTED = "permuted q, k, v"
INTERLEAVED = "heads interleaved"
NO_BIAS = "missing bias"
PATCH_ORDER = "order of values in a patch"
ROUNDED = "weights rounded to half precision"

_LEFT_OVER = 1e-9
"""Explained is what leaves no more than this share of the largest value: everything here is float64."""

HALVES: Mapping[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

_HALF_ATOL = 4e-3
"""Of values up to 1 that were rounded to one of them."""

_TABLE_ATOL = 1e-5
"""Tables of positions are float32, and their makers sum in different precision."""


class Change(NamedTuple):
    """One mistake: of several in a group at most one is made; ``atol`` is what it may leave."""

    group: str
    cause: str
    detail: str
    make: Callable[[dict[str, Array], TowerOptions], tuple[dict[str, Array], TowerOptions]]
    atol: float = 0.0


class Explanation(NamedTuple):
    """Causes, smallest set first found, each with its detail; and the error that is left with them."""

    causes: tuple[tuple[str, str], ...]
    left: float


@dataclass(frozen=True, kw_only=True)
class StepOfTwo:
    """A step with the weights and options of both sides; the inputs are A's. ``read_a`` gives A's other leaves."""

    step: Step
    state: State
    leaves_a: dict[str, Array]
    leaves_b: dict[str, Array]
    options_a: TowerOptions
    options_b: TowerOptions
    read_a: Callable[[str], Array | None]
    grid: tuple[int, int] | None = None


def explain(pair: StepOfTwo, value_a: Array, value_b: Array, *, first: tuple[str, ...] = ()) -> Explanation | None:
    """The smallest set of at most two mistakes that turns A's value into B's; None if there is none.

    ``first`` are causes to try before the others.
    """
    changes = sorted(_changes(pair), key=lambda change: change.cause not in first)
    scale = float(np.abs(value_b).max(initial=0.0))
    error = float(np.abs(value_a - value_b).max(initial=0.0))
    for count in (1, 2):
        for chosen in itertools.combinations(changes, count):
            if len({change.group for change in chosen}) < count:
                continue
            leaves, options = dict(pair.leaves_a), pair.options_a
            for change in chosen:
                leaves, options = change.make(leaves, options)
            made = run_step(pair.step, leaves, options, pair.state)
            if made.shape != value_b.shape:
                continue
            left = float(np.abs(made - value_b).max(initial=0.0))
            if left <= max(_LEFT_OVER * scale, *(change.atol for change in chosen)) and left < error / 10:
                return Explanation(tuple((change.cause, change.detail) for change in chosen), left)
    return None


def _changes(pair: StepOfTwo) -> Iterator[Change]:
    yield from _rounding(pair)
    match pair.step.kind:
        case "norm":
            yield from _eps(pair)
        case "gelu":
            yield from _gelu(pair)
        case "attention":
            yield from _attention(pair)
        case "pool":
            yield from _pool(pair)
        case "position":
            yield from _positions(pair)
        case "linear":
            yield from _linear(pair)
        case "head" | "stem":
            yield from _matrix(pair)
        case "none":
            pass
    yield from _biases(pair)


def _option(group: str, cause: str, detail: str, changed: Callable[[TowerOptions], TowerOptions]) -> Change:
    return Change(group, cause, detail, lambda leaves, options: (leaves, changed(options)))


def _leaf(group: str, cause: str, detail: str, changed: Mapping[str, Array], atol: float = 0.0) -> Change:
    def make(leaves: dict[str, Array], options: TowerOptions) -> tuple[dict[str, Array], TowerOptions]:
        return {**leaves, **changed}, options

    return Change(group, cause, detail, make, atol)


def _eps(pair: StepOfTwo) -> Iterator[Change]:
    a, b = pair.options_a.eps, pair.options_b.eps
    for eps in dict.fromkeys((b, 1e-5, 1e-6, 1e-12)):
        if eps != a:
            yield _option("eps", EPS, f"{a:g} in A, {eps:g} in B", partial(replace, eps=eps))


def _gelu(pair: StepOfTwo) -> Iterator[Change]:
    kinds: tuple[ReplayGelu, ...] = ("exact", "tanh", "quick")
    for kind in kinds:
        if kind != pair.options_a.gelu:
            yield _option("gelu", GELU, f"{pair.options_a.gelu} in A, {kind} in B", partial(replace, gelu=kind))


def _attention(pair: StepOfTwo) -> Iterator[Change]:
    a = pair.options_a
    where = "B only" if not a.is_causal else "A only"
    yield _option("mask", CAUSAL, f"{where} hides later tokens", partial(replace, is_causal=not a.is_causal))
    width = pair.state["q"].shape[-1]
    for heads in dict.fromkeys((pair.options_b.heads, *(n for n in range(1, width + 1) if width % n == 0 and n <= 64))):
        if heads != a.heads and width % heads == 0:
            yield _option("heads", HEADS, f"{a.heads} in A, {heads} in B", partial(replace, heads=heads))


def _pool(pair: StepOfTwo) -> Iterator[Change]:
    a = pair.options_a
    places = ("before", "after", "none") if "weight" in pair.leaves_a else ()
    for place in places:
        if place != a.pool_norm:
            yield _option("place", NORM_PLACE, f"{a.pool_norm} in A, {place} in B", partial(replace, pool_norm=place))
    if a.pool == "gap":
        where = "B" if not a.has_class_in_mean else "A"
        detail = f"only {where}'s mean takes it"
        yield _option("mean", CLASS_IN_MEAN, detail, partial(replace, has_class_in_mean=not a.has_class_in_mean))
    kinds: tuple[Pool, ...] = ("gap", "tok", "last")
    for kind in kinds:
        if kind != a.pool and a.pool != "map":
            yield _option("pool", POOL, f"{a.pool} in A, {kind} in B", partial(replace, pool=kind))
    yield from _eps(pair)
    if a.pool == "map":
        yield from _gelu(pair)


def _positions(pair: StepOfTwo) -> Iterator[Change]:
    table = pair.leaves_a["table"]
    yield _leaf("table", NO_POSITION, "B adds none", {"table": np.zeros_like(table)})
    rows, dim = table.shape
    tables: list[Array] = []
    if pair.grid is not None and dim % 4 == 0 and dim >= 8:
        tables = [_sincos_2d(pair.grid, dim, less) for less in (0, 1)]
        half = dim // 2
        swapped = np.concatenate([table[:, half:], table[:, :half]], axis=1)
        yield _leaf("table", SWAPPED_AXES, "B has y first", {"table": swapped}, _TABLE_ATOL)
    if pair.grid is None and dim % 2 == 0 and dim >= 4:
        tables = [_sincos_1d(rows, dim, less) for less in (0, 1)]
    for own, made, name in zip(tables, reversed(tables), ("q-1", "q"), strict=True):
        # Only of a table that is the one formula can it be said that the other is the other.
        if own.shape == table.shape and np.abs(own - table).max() <= _HALF_ATOL:
            yield _leaf("table", DENOMINATOR, f"B divides by {name}", {"table": made}, _TABLE_ATOL)


def _sincos_2d(grid: tuple[int, int], dim: int, less: int) -> Array:
    q = dim // 4
    omega = 10000.0 ** -(np.arange(q) / (q - less))
    y, x = (axis.reshape(-1, 1) * omega[None] for axis in np.mgrid[: grid[0], : grid[1]].astype(np.float64))
    table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    return np.concatenate([np.zeros_like(table[:1]), table])


def _sincos_1d(length: int, dim: int, less: int) -> Array:
    half = dim // 2
    angle = np.arange(length)[:, None] * 10000.0 ** -(np.arange(half) / (half - less))[None]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def _linear(pair: StepOfTwo) -> Iterator[Change]:
    yield from _matrix(pair)
    path, part = pair.step.name.rsplit("/", 1)
    weight, heads = pair.leaves_a["weight"], pair.options_a.heads
    if part in ("q", "k", "v"):
        for other in {"q", "k", "v"} - {part}:
            values = {kind: pair.read_a(f"{path}/{other}/{kind}") for kind in ("weight", "bias")}
            found = {kind: value for kind, value in values.items() if value is not None}
            yield _leaf("weight", PERMUTED, f"B's {part} is A's {other}", found)
            yield _leaf("weight", PERMUTED, f"B's weight of {part} is A's of {other}", {"weight": found["weight"]})
            transposed = {"weight": found["weight"].T}
            yield _leaf("weight", PERMUTED, f"B's {part} is A's {other}, transposed", found | transposed)
    if part in ("q", "k", "v", "out") and 1 < heads < weight.shape[0]:
        for split in ((heads, -1), (-1, heads)):
            if part == "out":
                mixed = {"weight": weight.reshape(len(weight), *split).swapaxes(1, 2).reshape(weight.shape)}
            else:
                mixed = {
                    kind: leaf.reshape(*split, *leaf.shape[1:]).swapaxes(0, 1).reshape(leaf.shape)
                    for kind, leaf in pair.leaves_a.items()
                }
            order = "(head, width)" if split[0] == heads else "(width, head)"
            yield _leaf("weight", INTERLEAVED, f"A's axis read as {order} is the other way round in B", mixed)
            if part != "out":
                yield _leaf("weight", INTERLEAVED, f"only B's weight, of {order}", {"weight": mixed["weight"]})


def _matrix(pair: StepOfTwo) -> Iterator[Change]:
    weight = pair.leaves_a["weight"]
    if pair.step.name.endswith("/token"):
        return
    if weight.ndim == 2 and weight.shape[0] == weight.shape[1]:
        yield _leaf("weight", TRANSPOSED, f"B's {pair.step.name} is A's transposed", {"weight": weight.T})
    if pair.step.kind == "stem":
        side = round((weight.shape[1] / 3) ** 0.5)
        if 3 * side * side == weight.shape[1]:
            kernel = weight.reshape(len(weight), side, side, 3)
            orders = {
                "blue first": kernel[..., ::-1],
                "columns first": kernel.swapaxes(1, 2),
                "channels first": kernel.transpose(0, 3, 1, 2),
            }
            for name, values in orders.items():
                yield _leaf("weight", PATCH_ORDER, f"{name} in B", {"weight": values.reshape(weight.shape)})


def _biases(pair: StepOfTwo) -> Iterator[Change]:
    for kind, bias in pair.leaves_a.items():
        if kind.endswith("bias") and bias.any():
            path = pair.step.leaves[kind]
            yield _leaf(kind, NO_BIAS, f"B has none at {path}", {kind: np.zeros_like(bias)})
    for kind, bias in pair.leaves_b.items():
        mine = pair.leaves_a.get(kind)
        if kind.endswith("bias") and bias.any() and (mine is None or not mine.any()):
            yield _leaf(kind, NO_BIAS, f"A has none at {pair.step.leaves[kind]}", {kind: bias})


def _rounding(pair: StepOfTwo) -> Iterator[Change]:
    a, b = pair.leaves_a, pair.leaves_b
    for name in HALVES:
        rounded = {kind: round_to(leaf, name) for kind, leaf in a.items()}
        if not _equal(rounded, a):
            yield _leaf("rounding", ROUNDED, f"B's are A's in {name}", rounded)
        if not _equal(a, b) and _equal(a, {kind: round_to(leaf, name) for kind, leaf in b.items()}):
            yield _leaf("rounding", ROUNDED, f"A's are B's in {name}", b)


def round_to(values: Array, dtype: str) -> Array:
    """Values as half precision holds them; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return values.astype(HALVES[dtype]).astype(np.float64)


def _equal(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[kind], b[kind]) for kind in a)


def leaves_of(step: Step, read: Callable[[str], Array | None]) -> dict[str, Array]:
    """A side's leaves for a step; those that it lacks are left out, missing norms' biases are zero."""
    found = {kind: read(path) for kind, path in step.leaves.items()}
    made = {kind: value for kind, value in found.items() if value is not None}
    if step.kind in ("norm", "pool"):
        for kind, value in found.items():
            if value is None and kind.endswith("bias") and (weight := made.get(kind[:-4] + "weight")) is not None:
                made[kind] = np.zeros(weight.shape[:1])
    return made
