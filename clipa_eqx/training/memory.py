"""Memory of a training step: does it fit, and which settings of the config would make it fit."""

from typing import Any

import jax
from jax.sharding import Mesh

from clipa_eqx.device_memory import ProgramMemory, check_fits, device_limit
from clipa_eqx.experiment import ExperimentConfig


def check_step_fits(needed: ProgramMemory, config: ExperimentConfig, mesh: Mesh, *, limit: int | None = None) -> None:
    """Check that a compiled step fits on the devices of this process, before it runs.

    Args:
        needed: bytes per device.
        limit: bytes of a device; None asks the devices.

    Raises:
        ConfigError: it cannot fit. The message has both numbers and flags that help.
    """
    mine: list[Any] = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    # The compiler has refused what does not fit by its own count, which is less than the sum of what it reports.
    needed = needed.without_gaps if all(d.platform == "tpu" for d in mine) else needed
    limits = [limit] if limit is not None else [found for d in mine if (found := device_limit(d)) is not None]
    available = min(limits, default=None)
    check_fits(
        needed,
        available,
        what=f"a step of {config.batch_size:,} pairs",
        advice=less_memory(config, devices=mesh.size, needed=needed, available=available),
    )


def less_memory(
    config: ExperimentConfig, *, devices: int, needed: ProgramMemory | None = None, available: int | None = None
) -> tuple[str, ...]:
    """Settings that make a step smaller, as flags to paste; those that reduce the larger part come first.

    Args:
        devices: number of devices of the run.
        needed: bytes per device that the step needs, if that is known.
        available: bytes that a device has, if that is known.
    """
    batch = smaller_batch(config.batch_size, devices=devices, needed=needed, available=available)
    temporary, state = _for_activations(config, batch, devices=devices), _for_state(config, devices)
    is_state_larger = needed is not None and needed.arguments > needed.temporary
    more = ("more devices, or devices with more memory",)
    return (*state, *temporary, *more) if is_state_larger else (*temporary, *state, *more)


def smaller_batch(
    batch_size: int, *, devices: int, needed: ProgramMemory | None = None, available: int | None = None
) -> int | None:
    """The batch, halved once or until its temporary memory should fit; None if no smaller batch divides evenly.

    Temporary memory falls at least as fast as the batch.
    """
    smallest = max(devices, 2)
    halves = 1
    if needed is not None and available is not None and available > needed.arguments:
        while needed.temporary / 2**halves > available - needed.arguments and batch_size / 2**halves > smallest:
            halves += 1
    found = batch_size // 2**halves // devices * devices
    return found if found >= smallest else None


def _for_activations(config: ExperimentConfig, batch: int | None, *, devices: int) -> tuple[str, ...]:
    lines: list[str] = []
    micro_batch = smaller_batch(config.micro_batch or config.batch_size, devices=devices)
    if micro_batch is not None:
        lines.append(
            f"--micro-batch {micro_batch}: activations of so many pairs at once, with the same loss; each pair is "
            "embedded twice"
        )
    if batch is not None:
        lines.append(f"--batch-size {batch}: fewer pairs per step (optim.peak_lr usually falls with it)")
    remat = [
        f"--model.{tower}.blocks.remat full"
        for tower, part in (("image", config.model.image), ("text", config.model.text))
        if part.blocks.remat != "full"
    ]
    if remat:
        lines.append(f"{' '.join(remat)}: activations are computed again instead of stored")
    if config.precision.compute == "float32":
        lines.append("--precision.compute bfloat16: activations of half the size")
    return tuple(lines)


def _for_state(config: ExperimentConfig, devices: int) -> tuple[str, ...]:
    lines: list[str] = []
    if config.mesh.fsdp < devices:
        data = "" if config.mesh.data is None else " --mesh.data 1"
        lines.append(
            f"--mesh.fsdp {devices}{data}: parameters and optimizer state split over {devices} devices (a run that is "
            "resumed may change it too)"
        )
    if config.optim.mu_dtype == "float32":
        lines.append("--optim.mu-dtype bfloat16: first moments of half the size")
    if config.ema is not None:
        lines.append("--ema none: no average of the parameters; scores and model are then those of the last step")
    return tuple(lines)
