"""Mistakes in the settings of a step: epsilon, GELU, heads, mask, pooling."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from conversion.compare.causes import (
    CAUSAL,
    CLASS_IN_MEAN,
    EPS,
    GELU,
    HEADS,
    NORM_PLACE,
    POOL,
    Change,
    StepOfTwo,
    changed_option,
)
from conversion.weights.tower_options import Pool, ReplayGelu


def eps_changes(pair: StepOfTwo) -> Iterator[Change]:
    """Other epsilons of a norm."""
    a, b = pair.options_a.eps, pair.options_b.eps
    for eps in dict.fromkeys((b, 1e-5, 1e-6, 1e-12)):
        if eps != a:
            yield changed_option("eps", EPS, f"{a:g} in A, {eps:g} in B", partial(replace, eps=eps))


def gelu_changes(pair: StepOfTwo) -> Iterator[Change]:
    """Other kinds of GELU."""
    kinds: tuple[ReplayGelu, ...] = ("exact", "tanh", "quick")
    for kind in kinds:
        if kind != pair.options_a.gelu:
            yield changed_option("gelu", GELU, f"{pair.options_a.gelu} in A, {kind} in B", partial(replace, gelu=kind))


def attention_changes(pair: StepOfTwo) -> Iterator[Change]:
    """A causal mask, and other numbers of heads."""
    a = pair.options_a
    where = "B only" if not a.is_causal else "A only"
    yield changed_option("mask", CAUSAL, f"{where} hides later tokens", partial(replace, is_causal=not a.is_causal))
    width = pair.state["q"].shape[-1]
    for heads in dict.fromkeys((pair.options_b.heads, *(n for n in range(1, width + 1) if width % n == 0 and n <= 64))):
        if heads != a.heads and width % heads == 0:
            yield changed_option("heads", HEADS, f"{a.heads} in A, {heads} in B", partial(replace, heads=heads))


def pool_changes(pair: StepOfTwo) -> Iterator[Change]:
    """Other places of the norm, means with or without the class token, other kinds of pooling."""
    a = pair.options_a
    places = ("before", "after", "none") if "weight" in pair.leaves_a else ()
    for place in places:
        if place != a.pool_norm:
            yield changed_option(
                "place", NORM_PLACE, f"{a.pool_norm} in A, {place} in B", partial(replace, pool_norm=place)
            )
    if a.pool == "gap":
        where = "B" if not a.has_class_in_mean else "A"
        detail = f"only {where}'s mean takes it"
        yield changed_option("mean", CLASS_IN_MEAN, detail, partial(replace, has_class_in_mean=not a.has_class_in_mean))
    kinds: tuple[Pool, ...] = ("gap", "tok", "last")
    for kind in kinds:
        if kind != a.pool and a.pool != "map":
            yield changed_option("pool", POOL, f"{a.pool} in A, {kind} in B", partial(replace, pool=kind))
    yield from eps_changes(pair)
    if a.pool == "map":
        yield from gelu_changes(pair)
