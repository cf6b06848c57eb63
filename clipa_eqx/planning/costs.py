"""Time and costs of a run on a slice: lower bounds of a step, and hours and dollars at a stated utilization."""

from collections.abc import Sequence
from typing import NamedTuple

from clipa_eqx.device_memory import ProgramMemory
from clipa_eqx.experiment import ExperimentConfig, operations_per_step
from clipa_eqx.flops import recomputed_flops
from clipa_eqx.planning.chips import Chip
from clipa_eqx.planning.program_text import Collective

UTILIZATION = 0.27
"""Useful operations per second as a share of the peak: what the published hours of the reference imply, see
``published.py``."""


class StepBounds(NamedTuple):
    """Seconds that a step takes at least, by what limits it.

    Attributes:
        compute: all operations, repeated ones included, at the peak rate.
        memory: state, activations and gathered weights moved between HBM and chip once in each direction.
        links: bytes that the collectives send, at the rate of all links of a chip.
    """

    compute: float
    memory: float
    links: float

    @property
    def least(self) -> float:
        """Seconds if everything overlaps perfectly."""
        return max(self)

    @property
    def limit(self) -> str:
        """The name of the largest bound."""
        return max(self._fields, key=lambda name: getattr(self, name))


class RunCost(NamedTuple):
    """Time and price of a run.

    Attributes:
        step_seconds: seconds of a step at the stated utilization, but never less than its bounds.
    """

    step_seconds: float
    samples_per_second: float
    hours: float
    dollars: float


def step_operations(config: ExperimentConfig) -> tuple[int, int]:
    """Useful operations of a step, and those that it repeats to save memory."""
    is_cached = config.micro_batch is not None and config.micro_batch < config.batch_size
    useful = operations_per_step(config).total
    return useful, recomputed_flops(config.model, batch_size=config.batch_size, is_cached=is_cached)


def step_bounds(
    config: ExperimentConfig,
    chip: Chip,
    *,
    chips: int,
    devices: int,
    memory: ProgramMemory,
    activations: int,
    collectives: Sequence[Collective],
) -> StepBounds:
    """Lower bounds of the seconds of a step.

    Args:
        memory: bytes per device of the compiled step.
        activations: bytes per device that are kept for the backward pass.
        collectives: those of the compiled step.
    """
    share = chips / devices
    gathered = sum(one.bytes * one.times for one in collectives if one.kind == "all-gather")
    return StepBounds(
        compute=sum(step_operations(config)) / (chips * chip.flops),
        memory=2 * (memory.arguments + activations + gathered) / (chip.bandwidth * share),
        links=sum(one.sent * one.times for one in collectives) / (chip.links * share),
    )


def run_cost(
    config: ExperimentConfig,
    chip: Chip,
    *,
    chips: int,
    total_steps: int,
    utilization: float = UTILIZATION,
    least_seconds: float = 0.0,
    dollars_per_chip_hour: float | None = None,
) -> RunCost:
    """Time and price of all steps of a run, without evaluations, checkpoints and interruptions.

    Args:
        utilization: useful operations per second as a share of the peak.
        least_seconds: the lower bound of a step.
        dollars_per_chip_hour: the price; None takes that of the chip.
    """
    useful, _ = step_operations(config)
    seconds = max(useful / (chips * chip.flops * utilization), least_seconds)
    hours = total_steps * seconds / 3600
    price = chip.dollars if dollars_per_chip_hour is None else dollars_per_chip_hour
    return RunCost(seconds, config.batch_size / seconds, hours, hours * chips * price)
