"""Changes of a config that make its step smaller, in the order of what they cost."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from clipa_eqx.device_memory import ProgramMemory
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.planning.compiled import Prepared, state_bytes
from clipa_eqx.planning.costs import step_operations
from clipa_eqx.planning.slices import Slice
from clipa_eqx.sharding import batch_parts, make_mesh

_MOST_ALONE = 2
"""Micro-batches to try before they are combined with recomputation."""


class Change(NamedTuple):
    """A changed config that computes the same, except for rounding.

    Attributes:
        flags: the flags that make the change.
        config: the config with them.
        extra: operations that the step does more, as a share of those before.
    """

    flags: tuple[str, ...]
    config: ExperimentConfig
    extra: float


def changes(prepared: Prepared, target: Slice, *, needed: ProgramMemory | None, available: int) -> list[Change]:
    """Changes that may make a step fit, cheapest first.

    First the state is split over more devices, if that alone is enough; then activations are computed again instead
    of kept; then the batch is embedded in micro-batches, and at last both. What a first estimate excludes is left out:
    temporaries fall at most as fast as the micro-batch.

    Args:
        needed: bytes per device of the unchanged step, if they are known.
        available: bytes that a device has.
    """
    config = prepared.config
    before = sum(step_operations(config))
    needed = None if needed is None else needed.without_gaps

    def change(changed: ExperimentConfig, *flags: str) -> Change:
        return Change(flags, changed, sum(step_operations(changed)) / before - 1)

    found = [change(one, *flags) for one, flags in _more_fsdp(prepared, target, needed, available)]
    remat = [change(one, *flags) for one, flags in _more_remat(config)]
    found += sorted(remat, key=lambda one: one.extra)
    smaller = list(_smaller(config, prepared, needed, available))
    found += [change(one, *flags) for one, flags in (smaller[:_MOST_ALONE] if remat else smaller)]
    if remat:
        # How much temporary memory full recomputation leaves is not known, so no micro-batch is left out.
        full = remat[-1]
        found += [change(one, *full.flags, *flags) for one, flags in _smaller(full.config, prepared, None, available)]
    return found


def _more_fsdp(
    prepared: Prepared, target: Slice, needed: ProgramMemory | None, available: int
) -> Iterator[tuple[ExperimentConfig, tuple[str, ...]]]:
    """The smallest larger fsdp with which the state alone is smaller by what is missing."""
    config, devices = prepared.config, prepared.mesh.size
    if needed is None:
        return
    fsdp = config.mesh.fsdp * 2
    while fsdp * config.mesh.tensor <= devices:
        if devices % (fsdp * config.mesh.tensor) == 0:
            data = None if config.mesh.data is None else devices // (fsdp * config.mesh.tensor)
            changed = replace(config, mesh=replace(config.mesh, fsdp=fsdp, data=data))
            state = state_bytes(prepared.abstract, make_mesh(changed.mesh, devices=target.devices))
            if needed.total - (sum(prepared.state) - sum(state)) <= available:
                yield changed, ("--mesh.fsdp", str(fsdp), *(() if data is None else ("--mesh.data", str(data))))
                return
        fsdp *= 2


def _more_remat(config: ExperimentConfig) -> Iterator[tuple[ExperimentConfig, tuple[str, ...]]]:
    """Products only kept by both towers, then nothing by either and by both, where more is kept now; "full" is last."""
    settings = {name: getattr(config.model, name).blocks.remat for name in ("text", "image")}
    for remat, larger in (("dots", ("none",)), ("full", ("none", "dots"))):
        towers = [name for name, setting in settings.items() if setting in larger]
        one_by_one = [(name,) for name in towers] if remat == "full" and len(towers) > 1 else []
        for chosen in [*one_by_one, *([tuple(towers)] if towers else [])]:
            changed = config.model
            for name in chosen:
                tower = getattr(changed, name)
                changed = replace(changed, **{name: replace(tower, blocks=replace(tower.blocks, remat=remat))})
            flags = tuple(word for name in chosen for word in (f"--model.{name}.blocks.remat", remat))
            yield replace(config, model=changed), flags


def _smaller(
    config: ExperimentConfig, prepared: Prepared, needed: ProgramMemory | None, available: int
) -> Iterator[tuple[ExperimentConfig, tuple[str, ...]]]:
    """Micro-batches of half the pairs, a quarter and so on."""
    parts = batch_parts(prepared.mesh)
    pairs = min(config.micro_batch or config.batch_size, config.batch_size)
    halvings = 1
    if needed is not None and available > needed.arguments:
        halvings = max(1, math.ceil(math.log2(max(needed.temporary / (available - needed.arguments), 1.0))))
    while pairs >> halvings >= parts and (pairs >> halvings) % parts == 0:
        yield replace(config, micro_batch=pairs >> halvings), ("--micro-batch", str(pairs >> halvings))
        halvings += 1
