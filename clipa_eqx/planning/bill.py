"""The bill of a config on a slice: what ``plan`` reports, as a value and as lines."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from clipa_eqx.device_memory import GIB
from clipa_eqx.planning.changes import Change
from clipa_eqx.planning.compiled import Compiled, Prepared
from clipa_eqx.planning.costs import RunCost, StepBounds, run_cost, step_bounds, step_operations
from clipa_eqx.planning.program_text import KINDS, Collective
from clipa_eqx.planning.slices import Slice
from clipa_eqx.sharding import batch_parts


class Tried(NamedTuple):
    """A change that was compiled."""

    change: Change
    compiled: Compiled
    fits: bool


class Bill(NamedTuple):
    """Everything about a config on a slice.

    Attributes:
        available: bytes that a program may use on a device.
        tried: changes that were compiled because the config does not fit, the last one fits if any does.
        bounds: None if the compiler refused.
    """

    name: str
    target: Slice
    prepared: Prepared
    compiled: Compiled
    available: int
    tried: tuple[Tried, ...]
    utilization: float
    bounds: StepBounds | None
    cost: RunCost

    @property
    def fits(self) -> bool:
        """Whether the unchanged step fits."""
        return does_fit(self.compiled, self.available)

    @property
    def change(self) -> Change | None:
        """The cheapest change that fits, if the unchanged step does not fit and one was found."""
        return self.tried[-1].change if self.tried and self.tried[-1].fits else None


def does_fit(compiled: Compiled, available: int) -> bool:
    """Whether a compiled step fits into this many bytes."""
    return not compiled.is_refused and compiled.memory is not None and compiled.memory.without_gaps.total <= available


def make_bill(
    name: str,
    target: Slice,
    prepared: Prepared,
    compiled: Compiled,
    *,
    available: int,
    tried: Sequence[Tried] = (),
    utilization: float,
    dollars_per_chip_hour: float | None = None,
) -> Bill:
    """The bill of a compiled step."""
    bounds = None
    if compiled.memory is not None and compiled.collectives is not None:
        bounds = step_bounds(
            prepared.config,
            target.chip,
            chips=target.chips,
            devices=len(target.devices),
            memory=compiled.memory,
            activations=compiled.activations,
            collectives=compiled.collectives,
        )
    cost = run_cost(
        prepared.config,
        target.chip,
        chips=target.chips,
        total_steps=prepared.total_steps,
        utilization=utilization,
        least_seconds=0.0 if bounds is None else bounds.least,
        dollars_per_chip_hour=dollars_per_chip_hour,
    )
    return Bill(name, target, prepared, compiled, available, tuple(tried), utilization, bounds, cost)


def bill_json(bill: Bill) -> dict[str, Any]:
    """The bill as values for JSON; bytes are per device."""
    prepared, compiled = bill.prepared, bill.compiled
    useful, repeated = step_operations(prepared.config)
    memory = compiled.memory
    return {
        "config": bill.name,
        "topology": bill.target.name,
        "chips": bill.target.chips,
        "devices": len(bill.target.devices),
        "mesh": dict(prepared.mesh.shape),
        "batch_size": prepared.config.batch_size,
        "micro_batch": prepared.config.micro_batch,
        "bytes": {
            "parameters": prepared.state.parameters,
            "optimizer_state": prepared.state.optimizer,
            "average": prepared.state.average,
            "arguments": None if memory is None else memory.arguments,
            "temporary": None if memory is None else memory.temporary,
            "activations": compiled.activations,
            "total": None if memory is None else memory.total,
            "peak": None if memory is None else memory.peak,
            "available": bill.available,
        },
        "fits": bill.fits,
        "change": None if bill.change is None else " ".join(bill.change.flags),
        "tried": [
            {
                "flags": " ".join(one.change.flags),
                "extra_operations": round(one.change.extra, 4),
                "peak": None if one.compiled.memory is None else one.compiled.memory.peak,
                "fits": one.fits,
            }
            for one in bill.tried
        ],
        "collectives": [
            {
                "kind": one.kind,
                "arrays": [str(array) for array in one.arrays],
                "devices": one.devices,
                "times": one.times,
                "bytes": one.bytes,
                "sent": round(one.sent),
                "is_certain": one.is_certain,
            }
            for one in compiled.collectives or ()
        ],
        "operations": {"useful": useful, "repeated": repeated},
        "least_seconds": None if bill.bounds is None else bill.bounds._asdict(),
        "utilization": bill.utilization,
        "steps": prepared.total_steps,
        **bill.cost._asdict(),
        "compile_seconds": round(compiled.seconds, 1),
        "compile_cpu_seconds": round(compiled.cpu_seconds, 1),
    }


def bill_lines(bill: Bill) -> list[str]:
    """The bill for a terminal."""
    prepared, target, config = bill.prepared, bill.target, bill.prepared.config
    mesh = ", ".join(f"{name} {size}" for name, size in prepared.mesh.shape.items())
    micro = f", in micro-batches of {config.micro_batch:,}" if config.micro_batch else ""
    rows = config.batch_size // batch_parts(prepared.mesh)
    lines = [
        f"{bill.name} on {target.name}: {target.chips:,} chips, {len(target.devices):,} devices, mesh {mesh}",
        f"a step: {config.batch_size:,} pairs, {rows:,} per place on the batch axes{micro}",
        "",
        *_memory_lines(bill),
    ]
    if bill.compiled.collectives is not None:
        lines += ["", *_collective_lines(bill.compiled.collectives)]
    useful, repeated = step_operations(config)
    lines += ["", f"operations of a step: {useful:.3e} useful, {repeated:.3e} repeated to save memory"]
    if bill.bounds is not None:
        lines.append(
            "a step takes at least: "
            + ", ".join(
                f"{seconds:.3f} s ({what})"
                for seconds, what in zip(bill.bounds, ("operations", "memory", "links"), strict=True)
            )
        )
    cost, limit = bill.cost, ""
    if bill.bounds is not None and cost.step_seconds <= bill.bounds.least:
        limit = f"; limited by {bill.bounds.limit}, not by the utilization"
    lines += [
        f"at {bill.utilization:.0%} of the peak: {cost.step_seconds:.3f} s per step, "
        f"{cost.samples_per_second:,.0f} pairs/s{limit}",
        f"{prepared.total_steps:,} steps: {cost.hours:,.1f} hours, {cost.hours * target.chips:,.0f} chip-hours, "
        f"{cost.dollars:,.0f} dollars",
        f"compiled in {bill.compiled.seconds:.0f} s ({bill.compiled.cpu_seconds:.0f} s of processor time)",
    ]
    return lines


def _memory_lines(bill: Bill) -> list[str]:
    state, memory = bill.prepared.state, bill.compiled.memory
    lines = [
        "GiB per device:",
        f"  parameters       {state.parameters / GIB:8.2f}",
        f"  optimizer state  {state.optimizer / GIB:8.2f}",
        *([f"  average          {state.average / GIB:8.2f}"] if state.average else []),
    ]
    if memory is not None and not bill.compiled.is_refused:
        lines += [
            f"  batch, padding   {(memory.arguments - sum(state)) / GIB:8.2f}",
            f"  temporaries      {memory.temporary / GIB:8.2f}, of which {bill.compiled.activations / GIB:.2f} are "
            "activations kept for the backward pass",
        ]
    verdict = f"of {bill.available / GIB:.2f}: {'fits' if bill.fits else 'does not fit'}"
    if memory is None:
        lines.append(f"  at the peak      more than there is {verdict}")
    else:
        lines += [
            f"  sum              {memory.total / GIB:8.2f}",
            f"  at the peak      {memory.peak / GIB:8.2f} {verdict}",
        ]
    for one in bill.tried:
        size = "" if one.compiled.memory is None else f"{one.compiled.memory.peak / GIB:.2f} GiB at the peak, "
        lines.append(
            f"  with {' '.join(one.change.flags)}: {size}{'fits' if one.fits else 'does not fit'}, "
            f"{one.change.extra:+.0%} operations"
        )
    if bill.tried and bill.change is None:
        lines.append("  nothing that was tried fits; use more chips, or chips with more memory")
    return lines


def _collective_lines(found: Sequence[Collective]) -> list[str]:
    by_kind = defaultdict[str, list[Collective]](list)
    for one in found:
        by_kind[one.kind].append(one)
    lines = ["collectives of a step, per device:"]
    for kind in KINDS:
        group = by_kind[kind]
        if group:
            largest = max(group, key=lambda one: one.sent * one.times)
            lines.append(
                f"  {kind:<19}{sum(one.times for one in group):6,} times, {_gib(group):7.2f} GiB sent; most: "
                f"{largest.times} x {largest.arrays[0]} over {largest.devices} devices"
            )
    if not all(one.is_certain for one in found):
        lines.append("  some are in loops of unknown length, and counted once")
    return lines


def _gib(group: Sequence[Collective]) -> float:
    return sum(one.sent * one.times for one in group) / GIB
