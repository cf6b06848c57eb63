"""The progress of a run by its metric log: steps done, time left, and whether it still writes."""

import itertools
import statistics
from collections.abc import Iterator, Sequence

from clipa_eqx.durations import RunLength
from clipa_eqx.errors import ConfigError
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.reports.scores import Line
from clipa_eqx.reports.short_text import short_time

_RECENT = 20
"""Number of lines that the speed is estimated from."""

_QUIET_SECONDS, _QUIET_PERIODS = 60.0, 5.0
"""No line for longer than both is worth a word: the run may have stopped. A period is the usual time between lines."""


def total_steps(config: ExperimentConfig, lines: Sequence[Line]) -> int | None:
    """The number of steps of a run; None if it is given in epochs and no line says yet how long one is."""
    seen, epochs = (lines[-1].get(name, 0) for name in ("examples_seen", "epoch")) if lines else (0, 0)
    data_size = round(seen / epochs) if epochs else None
    try:
        return RunLength.of(config.duration, batch_size=config.batch_size, data_size=data_size).total_steps
    except ConfigError:
        return None


def is_finished(config: ExperimentConfig, lines: Sequence[Line]) -> bool:
    """Whether the last step is logged."""
    return bool(lines) and lines[-1]["step"] == total_steps(config, lines)


def progress(config: ExperimentConfig, lines: Sequence[Line], *, now: float, is_training: bool | None) -> str:
    """One line such as ``step 120 of 500 (24 %), about 3 min left, last line 4 s ago``.

    Args:
        now: seconds since 1970.
        is_training: whether a process trains in the run folder; None if that is not known.
    """
    total = total_steps(config, lines)
    stopped = "no process trains in this folder: the same train command resumes it"
    if not lines:
        start = "no step is logged yet" if total is None else f"no step of {total:,} is logged yet"
        return f"{start}; {stopped}" if is_training is False else start
    step, age = int(lines[-1]["step"]), max(now - float(lines[-1].get("time", now)), 0.0)
    if step == total:
        return f"step {step:,} of {total:,}, finished {short_time(age)} ago"
    done = f"step {step:,}" if total is None else f"step {step:,} of {total:,} ({100 * step / total:.0f} %)"
    if is_training is False:
        return f"{done}, last line {short_time(age)} ago; {stopped}"
    per_step = seconds_per_step(lines)
    if per_step and age > max(_QUIET_SECONDS, _QUIET_PERIODS * per_step * config.log_every_steps):
        known = "the process still runs" if is_training else "if training has stopped, the same command resumes it"
        return f"{done}, no line for {short_time(age)}: {known}"
    left = f"about {short_time(per_step * (total - step))} left, " if per_step and total is not None else ""
    return f"{done}, {left}last line {short_time(age)} ago"


def seconds_per_step(lines: Sequence[Line]) -> float:
    """The median of the recent lines, so that a pause between two of them counts little; 0 if it is not known."""
    recent = [line for line in lines[-_RECENT - 1 :] if "time" in line]
    pairs = [
        (int(after["step"]) - int(before["step"]), float(after["time"]) - float(before["time"]))
        for before, after in itertools.pairwise(recent)
    ]
    found = [seconds / steps for steps, seconds in pairs if steps > 0 and seconds > 0]
    return statistics.median(found) if found else float(lines[-1].get("seconds_per_step", 0.0))


def steps_done(lines: Sequence[Line]) -> int:
    """Steps of this run folder: a run that took over the optimizer of another one does not start at step 0."""
    return int(lines[-1]["step"]) - int(lines[0]["step"]) + 1 if lines else 0


def timed(lines: Sequence[Line]) -> Iterator[tuple[Line, float]]:
    """Each line with the seconds of its steps since the line before; scoring, saving and compiling do not count.

    The first line is that of the first step.
    """
    before = int(lines[0]["step"]) - 1 if lines else 0
    for line in lines:
        step = int(line["step"])
        yield line, float(line.get("seconds_per_step", 0.0)) * (step - before)
        before = step


def input_bound_share(lines: Sequence[Line]) -> float | None:
    """The share of the training time in which the devices waited for input, in percent, at most.

    The mean over the lines, each weighted with the time of its steps; None if the log does not have it.
    """
    spent = waited = 0.0
    for line, seconds in timed(lines):
        if "input_bound_percent" in line:
            spent += seconds
            waited += seconds * float(line["input_bound_percent"])
    return waited / spent if spent else None
