"""Mistakes in the weights of a step: transposed, permuted, interleaved, rounded or missing values."""

from collections.abc import Iterator, Mapping

import numpy as np

from conversion.compare.causes import (
    HALVES,
    INTERLEAVED,
    NO_BIAS,
    PATCH_ORDER,
    PERMUTED,
    ROUNDED,
    TRANSPOSED,
    Change,
    StepOfTwo,
    changed_leaves,
    round_to,
)
from conversion.compare.replay import Float64Array


def linear_changes(pair: StepOfTwo) -> Iterator[Change]:
    """Mistakes in a linear layer; in q, k, v and out also permuted parts and interleaved heads."""
    yield from matrix_changes(pair)
    path, part = pair.step.name.rsplit("/", 1)
    weight, heads = pair.leaves_a["weight"], pair.options_a.heads
    if part in ("q", "k", "v"):
        for other in sorted({"q", "k", "v"} - {part}):
            values = {kind: pair.read_a(f"{path}/{other}/{kind}") for kind in ("weight", "bias")}
            found = {kind: value for kind, value in values.items() if value is not None}
            yield changed_leaves("weight", PERMUTED, f"B's {part} is A's {other}", found)
            yield changed_leaves(
                "weight", PERMUTED, f"B's weight of {part} is A's of {other}", {"weight": found["weight"]}
            )
            transposed = {"weight": found["weight"].T}
            yield changed_leaves("weight", PERMUTED, f"B's {part} is A's {other}, transposed", found | transposed)
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
            yield changed_leaves("weight", INTERLEAVED, f"A's axis read as {order} is the other way round in B", mixed)
            if part != "out":
                yield changed_leaves("weight", INTERLEAVED, f"only B's weight, of {order}", {"weight": mixed["weight"]})


def matrix_changes(pair: StepOfTwo) -> Iterator[Change]:
    """A transposed matrix, and other orders of the values in a patch."""
    weight = pair.leaves_a["weight"]
    if pair.step.name.endswith("/token"):
        return
    if weight.ndim == 2 and weight.shape[0] == weight.shape[1]:
        yield changed_leaves("weight", TRANSPOSED, f"B's {pair.step.name} is A's transposed", {"weight": weight.T})
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
                yield changed_leaves("weight", PATCH_ORDER, f"{name} in B", {"weight": values.reshape(weight.shape)})


def bias_changes(pair: StepOfTwo) -> Iterator[Change]:
    """A bias that one of the two sides lacks."""
    for kind, bias in pair.leaves_a.items():
        if kind.endswith("bias") and bias.any():
            path = pair.step.leaves[kind]
            yield changed_leaves(kind, NO_BIAS, f"B has none at {path}", {kind: np.zeros_like(bias)})
    for kind, bias in pair.leaves_b.items():
        mine = pair.leaves_a.get(kind)
        if kind.endswith("bias") and bias.any() and (mine is None or not mine.any()):
            yield changed_leaves(kind, NO_BIAS, f"A has none at {pair.step.leaves[kind]}", {kind: bias})


def rounding_changes(pair: StepOfTwo) -> Iterator[Change]:
    """Weights that one side has in half precision."""
    a, b = pair.leaves_a, pair.leaves_b
    for name in HALVES:
        rounded = {kind: round_to(leaf, name) for kind, leaf in a.items()}
        if not _equal(rounded, a):
            yield changed_leaves("rounding", ROUNDED, f"B's are A's in {name}", rounded)
        if not _equal(a, b) and _equal(a, {kind: round_to(leaf, name) for kind, leaf in b.items()}):
            yield changed_leaves("rounding", ROUNDED, f"A's are B's in {name}", b)


def _equal(a: Mapping[str, Float64Array], b: Mapping[str, Float64Array]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[kind], b[kind]) for kind in a)
