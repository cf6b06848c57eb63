"""The report of a run while it trains: written by process 0, at most 1 % of the time, and never a reason to stop."""

import logging
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from clipa_eqx.data.mixture import Mixture
from clipa_eqx.devices import in_words
from clipa_eqx.errors import ClipaError
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.replacing import write_text
from clipa_eqx.reports.run_facts import Machine, run_facts
from clipa_eqx.reports.run_page import REPORT_NAME, FixedParts, RunAbout, RunState, run_page
from clipa_eqx.reports.samples import Sample, read_samples
from clipa_eqx.reports.scores import Line
from clipa_eqx.reports.short_log import ShortLog
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from clipa_eqx.training.inputs import train_transform
from clipa_eqx.training.stopping import Interrupted

SAMPLES = 12
"""Training samples on the page."""

LEAST_SECONDS, LARGEST_SHARE = 10.0, 0.01
"""Between two writes: at least this time, and so long that writing takes at most this share of it."""

_MOST_LINES = 4000
"""Lines that are kept in memory; of more, neighbors without scores are merged."""

_log = logging.getLogger(__name__)


def run_samples(config: ExperimentConfig, mixture: Mixture, tokenizer: Tokenizer) -> list[Sample] | str:
    """The first samples of a run, or a sentence that says why they cannot be shown."""
    transform = train_transform(config, tokenizer)
    try:
        return read_samples(
            mixture, transform, samples=SAMPLES, seed=config.seed, on_bad_record=config.data.on_bad_record
        )
    except ClipaError as error:
        return f"The samples cannot be shown: {error}"


class LiveReport:
    """``report.html`` of a run that trains. It raises nothing: the first error is a warning, later ones are dropped."""

    def __init__(
        self,
        workdir: Path,
        about: Callable[[], RunAbout],
        lines: Sequence[Line],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Write the first page.

        Args:
            about: makes what is fixed; called once.
            lines: the metric log so far.
        """
        self._path, self._clock = workdir / REPORT_NAME, clock
        self._next, self._pause = clock(), 0.0
        self._log = ShortLog(most=_MOST_LINES)
        self._fixed: FixedParts | None = None
        self._has_warned = False
        try:
            self._fixed = FixedParts.of(about())
            for line in lines:
                self._log.add(line)
        except Exception as error:
            self._warn(error)
        self._write(RunState(kind="training", words="no step is done yet" if not self._log.lines else ""))

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Take a line of the log, and write the page if its time has come."""
        try:
            self._log.add({"step": step, **values})
        except Exception as error:
            self._warn(error)
        if self._clock() >= self._next:
            self._write(RunState(kind="training"))

    def close(self, error: BaseException | None) -> None:
        """Write the last page.

        Args:
            error: what ended the run; None if it is finished.
        """
        self._write(end_state(error))

    def _write(self, state: RunState) -> None:
        since = self._clock()
        try:
            if self._fixed is not None:
                page = run_page(self._fixed, self._log.lines, state, now=time.time(), pause=self._pause)
                write_text(self._path, page)
        except Exception as error:
            self._warn(error)
        ended = self._clock()
        self._pause = max(LEAST_SECONDS, (ended - since) * (1 / LARGEST_SHARE - 1))
        self._next = ended + self._pause

    def _warn(self, error: Exception) -> None:
        if not self._has_warned:
            reason = f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else error.strerror or error
            _log.warning("%s cannot be written (%s); training continues without it", self._path, reason)
        self._has_warned = True


def open_live_report(
    lines: Sequence[Line],
    *,
    config: ExperimentConfig,
    workdir: Path,
    mixture: Mixture,
    tokenizer: Tokenizer,
    mesh: Mesh,
    parameters: int,
    total_steps: int,
) -> LiveReport:
    """The report of a run on the devices of a mesh; for process 0."""

    def about() -> RunAbout:
        machine = Machine(
            devices=in_words(list(mesh.devices.flat)), mesh=dict(mesh.shape), command=shlex.join(sys.argv)
        )
        return RunAbout(
            name=workdir.resolve().name,
            config=config,
            facts=run_facts(config, parameters=parameters, total_steps=total_steps, machine=machine),
            samples=run_samples(config, mixture, tokenizer),
        )

    return LiveReport(workdir, about, lines)


def end_state(error: BaseException | None) -> RunState:
    """The state of a run that has ended."""
    match error:
        case None:
            return RunState(kind="finished", words="the last step is done, and the model is written")
        case Interrupted():
            return RunState(kind="interrupted", words=str(error))
        case ClipaError():
            return RunState(kind="stopped", words=str(error))
        case _:
            words = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
            return RunState(kind="stopped", words=f"{words}; the same train command resumes from the last checkpoint")
