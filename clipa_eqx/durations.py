"""Lengths of time in steps, samples, epochs or fractions of a run, and when periodic work is due."""

import dataclasses

from clipa_eqx.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duration:
    """A length of time in exactly one unit.

    ``steps`` and ``samples`` count, ``epochs`` are passes over the data set, ``fraction`` is a part of the whole run
    (0.1 is ten per cent).

    >>> Duration(epochs=7).to_steps(batch_size=32768, data_size=400_000_000)
    85449

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
                f"a duration has exactly one of steps, samples, epochs and fraction, got {given or 'none'};"
                " to replace a unit on the command line clear the other: --duration.epochs None --duration.steps 10"
            )
        [(name, value)] = given.items()
        if value < 0 or (value == 0 and name != "steps"):
            raise ConfigError(f"duration {name}={value} must be positive; for a duration of zero write steps=0")
        if name == "fraction" and value > 1:
            raise ConfigError(f"duration fraction={value} is more than the whole run; 0.1 is ten per cent")

    def to_steps(
        self, *, batch_size: int | None = None, data_size: int | None = None, total_steps: int | None = None
    ) -> int:
        """The nearest number of steps, at least 1 unless given as ``steps=0``; rounding as ``helpers.utils.steps``.

        Args:
            batch_size: pairs per step over all devices, for samples and epochs.
            data_size: pairs in the data set, for epochs.
            total_steps: steps of the run, for fractions.

        Raises:
            ConfigError: a size that the unit needs is missing.
        """
        if self.steps is not None:
            return self.steps
        if self.samples is not None:
            steps = self.samples / _known("batch_size", batch_size, self)
        elif self.epochs is not None:
            steps = self.epochs * _known("data_size", data_size, self) / _known("batch_size", batch_size, self)
        else:
            steps = (self.fraction or 0.0) * _known("total_steps", total_steps, self)
        return max(round(steps), 1)


NO_TIME = Duration(steps=0)


def is_time(
    step: int,
    *,
    every_steps: int | None,
    total_steps: int,
    first: bool = True,
    last: bool = True,
    drop_close_to_last: float = 0.25,
) -> bool:
    """Whether work that is due each ``every_steps`` is due now; ``None`` or 0 means never.

    It is also due at step 1 if ``first`` and at the last step if ``last``. A multiple of ``every_steps`` that lies less
    than ``drop_close_to_last`` periods before the last step is left out. Source: ``helpers.utils.itstime``.

    >>> [s for s in range(1, 1011) if is_time(s, every_steps=200, total_steps=1010)]
    [1, 200, 400, 600, 800, 1010]
    """
    if not every_steps:
        return False
    if every_steps < 0:
        raise ConfigError(f"every_steps={every_steps} must be positive, or 0 or None for never")
    is_multiple = step % every_steps == 0 and abs(step - total_steps) >= drop_close_to_last * every_steps
    return is_multiple or (last and step == total_steps) or (first and step == 1)


def _known(name: str, value: int | None, duration: Duration) -> int:
    if value is None or value < 1:
        raise ConfigError(f"{duration} needs a positive {name} to become steps, got {value}; give it, or use steps=")
    return value
