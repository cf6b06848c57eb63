"""A line at start-up: the images/s of the input next to what the step needs, and which setting to change."""

import logging
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax

from clipa_eqx.data.mixture import Mixture
from clipa_eqx.errors import counted
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.training.inputs import available_processors
from clipa_eqx.training.read_ahead import ReadAhead

TIMED_STEPS = 3
"""Steps of a start that are timed. The first one has costs of its own, and does not count."""

_LARGE_RECORD = 40_000
"""Mean bytes of a record from which smaller images are worth a conversion; with --max-side 256 it is about 20,000."""

_log = logging.getLogger(__name__)


class StepClock:
    """The time of the first steps on the devices, without waiting for them in the loop."""

    def __init__(self) -> None:
        """Begin without steps."""
        self._started = 0
        self._spans: list[tuple[float, float]] = []

    def started(self, running: Any, *, since: float) -> None:
        """Record that a step was started at ``since``; a thread notes when its result ``running`` is ready."""
        if self._started < TIMED_STEPS:
            self._started += 1
            threading.Thread(target=self._wait, args=(running, since), name="step-clock", daemon=True).start()

    def seconds(self) -> float | None:
        """The seconds of a step; None until all steps that are timed have ended."""
        if len(self._spans) < TIMED_STEPS:
            return None
        return step_seconds(self._spans)

    def _wait(self, running: Any, since: float) -> None:
        try:
            jax.block_until_ready(running)
        except Exception:  # the loop reads the same result, and raises this
            return
        self._spans.append((since, time.perf_counter()))


class InputForecast:
    """The line, once. Process 0 prints it; another process does so only if its own input is too slow."""

    def __init__(
        self, config: ExperimentConfig, mixture: Mixture, rows: ReadAhead, *, local_rows: int, is_resumed: bool
    ) -> None:
        """Prepare the line.

        Args:
            rows: the batches, which are being measured.
            local_rows: rows of a batch that this process makes.
            is_resumed: whether settings that change the content of batches can no longer be changed.
        """
        self.clock: StepClock = StepClock()
        self._config, self._mixture, self._rows = config, mixture, rows
        self._local_rows, self._is_resumed = local_rows, is_resumed
        self._is_over = False

    def print_once(self) -> None:
        """Print the line if both rates are known by now."""
        if self._is_over or not self._rows.is_measured or (seconds := self.clock.seconds()) is None:
            return
        self._is_over = True
        made, needed = self._rows.images_per_second(), self._local_rows / seconds
        if made is None:
            return
        is_slow, processes = made < needed, jax.process_count()
        where = f" of process {jax.process_index()} of {processes}" if processes > 1 else ""
        least = "at least " if self._rows.is_at_least else ""
        rates = f"the input{where} makes {least}{made:,.0f} images/s, the step needs {needed:,.0f}"
        if is_slow and not self._rows.is_at_least:
            advice = slow_input_advice(
                self._config,
                shortage=needed / made,
                processors=available_processors(),
                record_bytes=mean_record_bytes(self._mixture),
                is_resumed=self._is_resumed,
            )
            wait = 100 * (1 - made / needed)
            _log.info("%s: the devices will wait %.0f %% of the time. %s", rates, wait, advice)
        elif jax.process_index() == 0:
            _log.info("%s: %s", rates, "see input_bound_percent" if is_slow else "nothing to change")


def step_seconds(spans: Sequence[tuple[float, float]]) -> float:
    """The shortest time of a step after the first one, from the start and end of each.

    A step starts on the devices when the step before has ended, if that is later than its start by the host.

    >>> step_seconds([(0.0, 5.0), (1.0, 7.0), (6.0, 9.5)])
    2.0
    """
    ordered = sorted(spans)
    return max(min(end - max(since, ordered[at][1]) for at, (since, end) in enumerate(ordered[1:])), 1e-9)


def slow_input_advice(
    config: ExperimentConfig, *, shortage: float, processors: int, record_bytes: float, is_resumed: bool
) -> str:
    """Advice for an input that is too slow, the cheapest change first.

    Args:
        shortage: images/s of the step divided by those of the input.
        processors: processors of this machine that this process may use.
        record_bytes: mean size of a record.
        is_resumed: leave out what only a new run may change.
    """
    stream = config.data.stream
    found: list[str] = []
    wanted = min(processors, max(math.ceil(max(stream.workers, 1) * shortage), stream.workers + 1))
    if wanted > stream.workers:
        found.append(
            f"--data.stream.workers {wanted} instead of {stream.workers} ({counted(processors, 'processor')} here)"
        )
    if config.data.image.mode == "exact" and not is_resumed:
        found.append("--data.image.mode fast, which decodes at a reduced size")
    if record_bytes > _LARGE_RECORD:
        found.append(f"records converted with --max-side 256 (now {record_bytes / 1000:.0f} kB each)")
    if not found:
        return f"All {counted(processors, 'processor')} read already: use a machine with more of them per device"
    return f"Change first: {'; then '.join(found)}"


def mean_record_bytes(mixture: Mixture) -> float:
    """Bytes of a record on average over the record folders, as the manifests count them."""
    size = sum(int(source.manifest.table.sizes.sum()) for source in mixture.sources)
    return size / max(sum(map(len, mixture.sources)), 1)
