"""The length of a run, durations in steps, samples, epochs or fractions of it, and when periodic work is due."""

import dataclasses

from clipa_eqx.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duration:
    """A length of time in exactly one unit.

    ``RunLength.of`` turns the duration of a run into steps.

    Attributes:
        steps: number of steps; 0 is allowed.
        samples: number of samples (pairs).
        epochs: passes over the data set.
        fraction: part of the complete run, at most 1; 0.1 is ten percent.

    Examples:
        >>> Duration(fraction=0.1).to_steps(RunLength(total_steps=5000))
        500

    Raises:
        ConfigError: none or several units given, or a length that is not positive (0 steps are allowed).
    """

    steps: int | None = None
    samples: int | None = None
    epochs: float | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if len(given) != 1:
            raise ConfigError(
                f"a duration has exactly one of steps, samples, epochs and fraction, got {given or 'none'}"
            )
        [(name, value)] = given.items()
        if value < 0 or (value == 0 and name != "steps"):
            raise ConfigError(f"duration {name}={value} must be positive; for a duration of zero write steps=0")
        if name == "fraction" and value > 1:
            raise ConfigError(f"duration fraction={value} is more than the complete run; 0.1 is ten percent")

    def to_steps(self, run: "RunLength") -> int:
        """The nearest number of steps, at least 1 unless given as ``steps=0``; rounding as ``helpers.utils.steps``.

        Raises:
            ConfigError: ``run`` lacks a size that the unit needs.
        """
        return _steps(self, total_steps=run.total_steps, batch_size=run.batch_size, data_size=run.data_size)


NO_TIME = Duration(steps=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunLength:
    """The length of a run in steps, and the sizes that turn samples and epochs into steps.

    Attributes:
        total_steps: steps of the run, where schedules end.
        batch_size: pairs per step over all devices; ``None`` if no duration is in samples or epochs.
        data_size: pairs in the data set; ``None`` if no duration is in epochs.

    Raises:
        ConfigError: a size that is not positive.
    """

    total_steps: int
    batch_size: int | None = None
    data_size: int | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be positive")

    @classmethod
    def of(cls, duration: Duration, *, batch_size: int | None = None, data_size: int | None = None) -> "RunLength":
        """The length of a run that takes ``duration``.

        Examples:
            >>> RunLength.of(Duration(epochs=7.0), batch_size=32768, data_size=400_000_000).total_steps
            85449

        Raises:
            ConfigError: a size that the duration's unit needs is missing, or the duration is a fraction.
        """
        steps = _steps(duration, total_steps=None, batch_size=batch_size, data_size=data_size)
        return cls(total_steps=steps, batch_size=batch_size, data_size=data_size)

    def epochs(self, steps: int) -> float:
        """Passes over the data set in ``steps`` steps; needs ``batch_size`` and ``data_size``."""
        if self.batch_size is None or self.data_size is None:
            raise ConfigError(f"{self} needs batch_size and data_size to count epochs")
        return steps * self.batch_size / self.data_size


def is_time(
    step: int,
    *,
    every_steps: int | None,
    total_steps: int,
    first: bool = True,
    last: bool = True,
    drop_close_to_last: float = 0.25,
) -> bool:
    """True if work that is due every ``every_steps`` steps is due at ``step``; ``None`` or 0 means never.

    It is also due at step 1 if ``first`` and at the last step if ``last``. A multiple of ``every_steps`` that is less
    than ``drop_close_to_last`` periods before the last step is left out. Source: ``helpers.utils.itstime``.

    Examples:
        >>> [s for s in range(1, 1011) if is_time(s, every_steps=200, total_steps=1010)]
        [1, 200, 400, 600, 800, 1010]
    """
    if not every_steps:
        return False
    if every_steps < 0:
        raise ConfigError(f"every_steps={every_steps} must be positive, or 0 or None for never")
    is_multiple = step % every_steps == 0 and abs(step - total_steps) >= drop_close_to_last * every_steps
    return is_multiple or (last and step == total_steps) or (first and step == 1)


def _steps(duration: Duration, *, total_steps: int | None, batch_size: int | None, data_size: int | None) -> int:
    if duration.steps is not None:
        return duration.steps
    if duration.samples is not None:
        steps = duration.samples / _known("batch_size", batch_size, duration)
    elif duration.epochs is not None:
        steps = duration.epochs * _known("data_size", data_size, duration) / _known("batch_size", batch_size, duration)
    else:
        steps = (duration.fraction or 0.0) * _known("total_steps", total_steps, duration)
    return max(round(steps), 1)


def _known(name: str, value: int | None, duration: Duration) -> int:
    if value is None or value < 1:
        raise ConfigError(f"{duration} needs a positive {name} to become steps, got {value}; give it, or use steps=")
    return value
