"""Shape of the optimizer chain that the reference would build for a config."""

from typing import Any, NamedTuple

from clipa_eqx.optim import OptimConfig
from clipa_eqx.trees import match_by_path


class ChainShape(NamedTuple):
    """Numbers of entries of each kind, and what has no moments.

    Attributes:
        frozen: ``(path, layer)`` of frozen layers; layer ``None`` for a complete leaf.
    """

    decays: int
    factors: int
    schedules: int
    frozen: frozenset[tuple[str, int | None]]


def chain_shape(config: OptimConfig, params: Any) -> ChainShape:
    """The shape of the optimizer's state that the reference, with one entry per pattern, would have for this config.

    Rules with the same value count as one pattern. There is no entry for a factor of 1 everywhere or a decay of 0.
    """
    decays = match_by_path(config.decay, params, what="optim.decay", unused="allow")
    factors = match_by_path(config.lr_factors, params, what="optim.lr_factors", unused="allow")
    schedules = match_by_path(config.schedules, params, what="optim.schedules", unused="allow")
    strengths = {one for value in decays.values() for one in _values(value) if one * config.weight_decay}
    multiples = {one for value in factors.values() for one in _values(value)}
    live = {one for value in schedules.values() for one in _values(value) if one is not None}
    frozen: set[tuple[str, int | None]] = {(path, None) for path, value in schedules.items() if value is None}
    for path, value in schedules.items():
        if isinstance(value, tuple):
            frozen |= {(path, layer) for layer, one in enumerate(value) if one is None}
    return ChainShape(len(strengths), 0 if multiples == {1.0} else len(multiples), len(live), frozenset(frozen))


def _values(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
