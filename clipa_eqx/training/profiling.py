"""Traces of training steps in the run folder, for TensorBoard, XProf and Perfetto."""

import logging
import re
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax

from clipa_eqx.errors import ConfigError
from clipa_eqx.training.metrics import Throughput
from clipa_eqx.training.watchdog import Watchdog

PROFILE_NAME = "profile"
"""Folder of traces in a run folder."""

MOST_STEPS = 100
"""Steps of a trace. Viewers are slow with more, and a trace is in memory until it is written."""

_log = logging.getLogger(__name__)


class ProfiledSteps(NamedTuple):
    """The steps that a trace has: from ``first`` to ``last``, both included."""

    first: int
    last: int

    @classmethod
    def of(cls, text: str) -> "ProfiledSteps":
        """The steps of a flag such as ``10:12``.

        Raises:
            ConfigError: not two numbers of steps in their order, or more than ``MOST_STEPS``.
        """
        found = re.fullmatch(r"([0-9]{1,12}):([0-9]{1,12})", text)
        example = "give the first and the last step, such as --profile 10:12"
        if found is None:
            raise ConfigError(f"--profile {text} is not START:STOP; {example}")
        steps = cls(int(found[1]), int(found[2]))
        if steps.first < 1 or steps.last < steps.first:
            raise ConfigError(f"--profile {text} has no step: steps are counted from 1, both ends included; {example}")
        if (count := steps.last - steps.first + 1) > MOST_STEPS:
            raise ConfigError(f"--profile {text} has {count:,} steps; a trace has at most {MOST_STEPS}")
        return steps

    def check(self, *, total_steps: int) -> None:
        """Check that a run has these steps.

        Raises:
            ConfigError: it ends before the last of them.
        """
        if self.last > total_steps:
            raise ConfigError(
                f"--profile {self.first}:{self.last} ends after the run, which has {total_steps:,} steps; give steps "
                f"up to {total_steps}"
            )

    def __str__(self) -> str:
        return f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"


class StepProfile:
    """The trace of some steps, which process 0 writes. Use it in a ``with`` block, whose end also ends the trace.

    A trace that cannot be written is a warning: training continues.
    """

    def __init__(
        self, workdir: Path, steps: ProfiledSteps | None, *, start: int, throughput: Throughput, watchdog: Watchdog
    ) -> None:
        """Prepare the trace of a run that starts after step ``start``; None for no trace.

        Args:
            throughput: excludes the time of starting and writing the trace from its rates.
        """
        self._folder, self._throughput, self._watchdog = workdir / PROFILE_NAME, throughput, watchdog
        self._steps = steps if jax.process_index() == 0 else None
        self._is_running = False
        if self._steps is not None and self._steps.first <= start:
            left = ProfiledSteps(start + 1, self._steps.last) if self._steps.last > start else None
            then = "nothing is profiled" if left is None else f"the trace has {left}"
            _log.warning("--profile: this start begins after step %d of %s; %s", start, self._steps, then)
            self._steps = left

    def before(self, step: int, running: Any) -> None:
        """Begin the trace if it begins with ``step``, once the devices have computed ``running``."""
        if self._steps is None or step != self._steps.first:
            return
        with self._watchdog.phase("starting the trace"), self._throughput.paused(running):
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # calls of Python functions would slow down the steps and fill the trace
            try:
                jax.profiler.start_trace(self._folder, profiler_options=options)
                self._is_running = True
            except Exception as error:  # such as another profiler in this process
                _log.warning("%s cannot be profiled: %s", self._steps, error)

    def after(self, step: int, running: Any) -> None:
        """Write the trace if it ends with ``step``, once the devices have computed ``running``."""
        if self._is_running and self._steps is not None and step == self._steps.last:
            with self._watchdog.phase("writing the trace"), self._throughput.paused(running):
                self._write(str(self._steps))

    def _write(self, what: str) -> None:
        self._is_running = False
        try:
            jax.profiler.stop_trace()
            _log.info("the trace of %s is in %s", what, self._folder)
        except Exception as error:  # the profiler has errors of its own; the disk may be full
            _log.warning("the trace of %s cannot be written to %s: %s", what, self._folder, error)

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_running:
            self._write(f"{self._steps}, which were interrupted,")
