"""Learning-rate multipliers as functions of the number of updates done, with warm-up and cool-down.

Source: ``helpers.utils.create_learning_rate_schedule`` of the reference (docs/reference.md F6.3). The multiplier is 1
after warm-up and does not include the peak learning rate. With warm-up the first update has the multiplier 0, as in the
reference: it changes only the moments.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from clipa_eqx.durations import NO_TIME, Duration, RunLength
from clipa_eqx.errors import ConfigError

Count = Int[Array, ""] | int
Scalar = Float[Array, ""] | np.float32
Multiplier = Callable[[Count], Scalar]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ramps:
    """Fields of all schedules.

    Attributes:
        warmup: time of a linear rise from 0 at the start of the run.
        cooldown: time of a linear fall to 0 at its end.
        reference_batch_size: scales the peak by batch size / reference batch size; ``None`` does not scale it. The
            reference's ``scale_with_batchsize`` is 256.
    """

    warmup: Duration = NO_TIME
    cooldown: Duration = NO_TIME
    reference_batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.reference_batch_size is not None and self.reference_batch_size < 1:
            raise ConfigError(f"reference_batch_size={self.reference_batch_size} must be positive, or None")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(Ramps):
    """Half a cosine from 1 to ``min_ratio``.

    Attributes:
        min_ratio: multiplier at the end of the run, without the cool-down (the reference's min_lr / max_lr).
        warmup: time of a linear rise from 0 at the start of the run.
        cooldown: time of a linear fall to 0 at the end of the run.
        reference_batch_size: scales the peak by batch size / reference batch size; ``None`` does not scale it.

    Raises:
        ConfigError: a reference batch size below 1.
    """

    min_ratio: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Polynomial(Ramps):
    """Decay from 1 to ``end_ratio`` as ``(1 - progress) ** power``.

    Attributes:
        end_ratio: multiplier at the end of the run, without the cool-down.
        power: exponent; 1 is linear decay.
        warmup: time of a linear rise from 0 at the start of the run.
        cooldown: time of a linear fall to 0 at the end of the run.
        reference_batch_size: scales the peak by batch size / reference batch size; ``None`` does not scale it.

    Raises:
        ConfigError: a reference batch size below 1.
    """

    end_ratio: float = 0.0
    power: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rsqrt(Ramps):
    """One over the square root of 1 + steps since warm-up / ``timescale_steps``.

    Attributes:
        timescale_steps: steps after warm-up in which the square of the multiplier falls to one half.
        warmup: time of a linear rise from 0 at the start of the run.
        cooldown: time of a linear fall to 0 at the end of the run.
        reference_batch_size: scales the peak by batch size / reference batch size; ``None`` does not scale it.

    Raises:
        ConfigError: a timescale or a reference batch size below 1.
    """

    timescale_steps: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.timescale_steps < 1:
            raise ConfigError(f"timescale_steps={self.timescale_steps} must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stair(Ramps):
    """1 before ``steps[0]``, ``factors[i]`` from ``steps[i]`` until ``steps[i + 1]``.

    Attributes:
        steps: numbers of updates done at which the multiplier changes, in increasing order.
        factors: the multiplier from each of ``steps`` on.
        warmup: time of a linear rise from 0 at the start of the run.
        cooldown: time of a linear fall to 0 at the end of the run.
        reference_batch_size: scales the peak by batch size / reference batch size; ``None`` does not scale it.

    Raises:
        ConfigError: steps that do not increase or are not as many as factors, or a reference batch size below 1.
    """

    steps: tuple[int, ...]
    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.steps) != len(self.factors) or list(self.steps) != sorted(set(self.steps)):
            raise ConfigError(f"steps={self.steps} must increase and be as many as factors={self.factors}")


Schedule = Cosine | Polynomial | Rsqrt | Stair


def make_multiplier(schedule: Schedule, run: RunLength) -> Multiplier:
    """The multiplier as a function of the updates done before; it can be traced.

    A Python number gives a numpy result, without any work of a device: for a device that is busy with a step, that work
    would have to wait for the step.

    It is meant for 0 to ``run.total_steps`` updates; after that a cool-down continues below zero, as in the reference.

    Examples:
        >>> multiplier = make_multiplier(Cosine(warmup=Duration(steps=10)), RunLength(total_steps=110))
        >>> round(float(multiplier(60)), 6)
        0.5

    Raises:
        ConfigError: warm-up does not end before the run, cool-down is longer than the run, or a duration needs a size
            that ``run`` lacks.
    """
    total_steps = run.total_steps
    warmup, cooldown = schedule.warmup.to_steps(run), schedule.cooldown.to_steps(run)
    if warmup >= total_steps > 1:
        raise ConfigError(
            f"warm-up of {warmup} steps ({schedule.warmup}) does not end before the run of {total_steps} steps;"
            " shorten warmup or train longer"
        )
    if cooldown > total_steps:
        raise ConfigError(
            f"cool-down of {cooldown} steps ({schedule.cooldown}) is longer than the run of {total_steps} steps"
        )
    peak = 1.0
    if schedule.reference_batch_size is not None:
        if run.batch_size is None:
            raise ConfigError("a schedule with reference_batch_size needs batch_size")
        peak = run.batch_size / schedule.reference_batch_size

    def multiplier(count: Count) -> Scalar:
        numbers: Any = jnp if isinstance(count, jax.Array) else np
        step: Any = numbers.asarray(count, np.float32)
        value = _decayed(schedule, step, numbers, peak=peak, warmup_steps=warmup, total_steps=total_steps)
        if warmup:
            value = value * numbers.minimum(1.0, step / warmup)
        if cooldown:
            value = value * numbers.minimum(1.0, (total_steps - step) / cooldown)
        return value if numbers is jnp else np.float32(value)

    return multiplier


def _decayed(schedule: Schedule, step: Any, numbers: Any, *, peak: float, warmup_steps: int, total_steps: int) -> Any:
    """The multiplier without its ramps; ``numbers`` is the module of ``step``, numpy or jax.numpy."""
    progress = numbers.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
    match schedule:
        case Cosine():
            low = schedule.min_ratio
            return low + (peak - low) * 0.5 * (1.0 + numbers.cos(np.pi * progress))
        case Polynomial():
            end = schedule.end_ratio
            return end + (peak - end) * (1.0 - progress) ** schedule.power
        case Rsqrt():
            since = numbers.maximum(step - warmup_steps, 0.0)
            return peak / numbers.sqrt((since + schedule.timescale_steps) / schedule.timescale_steps)
        case Stair():
            # Compared one by one: a step is an integer below 2**24, exact in float32.
            values = numbers.asarray((1.0, *schedule.factors), np.float32)
            return peak * values[numbers.sum(step >= numbers.asarray(schedule.steps, np.float32))]
