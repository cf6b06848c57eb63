"""The end of a step: scores, log line, checkpoint, and the end of the run if that was requested."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipa_eqx.durations import is_time
from clipa_eqx.evals.encode import called_before_batches
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.models.clip import CLIP
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.guarding import Guard
from clipa_eqx.training.inputs import PlannedEvaluation
from clipa_eqx.training.recompilation import CompileWatch
from clipa_eqx.training.reporting import Reports, StepNumbers
from clipa_eqx.training.retention import BestScore
from clipa_eqx.training.state import TrainState
from clipa_eqx.training.stopping import Interrupted, StopRequests, before_the_first_step
from clipa_eqx.training.watchdog import Watchdog

_PENDING = "pending"
"""Entry of a checkpoint's ``about``: a step whose line is not written, because its evaluations were interrupted."""

_log = logging.getLogger(__name__)


def pending_numbers(about: Mapping[str, Any], *, step: int) -> StepNumbers | None:
    """The numbers of the step that a checkpoint was saved after, if its evaluations and its line are still to come."""
    found = about.get(_PENDING)
    if found is None or found["step"] != step:
        return None
    return StepNumbers(step, found["values"], np.zeros(0, np.int64))


@dataclass(frozen=True, kw_only=True, eq=False)
class StepEnd:
    """The work after a step. All processes call it together.

    Attributes:
        score: scores a model by evaluations.
        record: the record of the run, for checkpoints.
        check_lock: raises if another process has taken the run folder.
    """

    config: ExperimentConfig
    total_steps: int
    evaluations: Sequence[PlannedEvaluation]
    score: Callable[[Sequence[PlannedEvaluation], CLIP], dict[str, float]]
    record: Mapping[str, Any]
    check_lock: Callable[[], None]
    reports: Reports
    checkpoints: Checkpoints
    best: BestScore
    guard: Guard
    stops: StopRequests
    compiles: CompileWatch
    watchdog: Watchdog

    def __call__(self, state: TrainState, numbers: StepNumbers) -> bool:
        """Score and save a state if it is time, and stop if that is requested; returns whether the step was reported.

        A state whose guarded score is too low is saved too, and ends the run.

        Evaluations that a request interrupts are repeated when the run resumes, before the line of the step is written.

        Raises:
            NonFiniteError: the numbers of the step, or embeddings, are not finite.
            CheckpointError: a checkpoint could not be written.
            GuardError: the guarded score fell too far.
            Interrupted: the run was to stop, and the state is saved.
        """
        step, every = numbers.step, self.config.checkpoint.every_steps
        is_stop = self.stops.poll()
        due = [one for one in self.evaluations if self._is_due(one, step)]
        is_saved = is_stop or is_time(step, every_steps=every, total_steps=self.total_steps, first=False)
        if not due and not is_saved:
            return False
        # Only a state with finite numbers is scored and saved.
        values = self.reports.check(numbers, last_checkpoint=self.checkpoints.last_saved)
        scores = None if due and is_stop else self._scores(due, state)
        if scores is None:
            is_stop = is_saved = True
            more: dict[str, Any] = {_PENDING: {"step": step, "values": values}}
        else:
            # Write the log line before the checkpoint, so that after a resume each step appears exactly once.
            self.reports.finish(numbers, last_checkpoint=self.checkpoints.last_saved, extra=scores)
            is_saved |= self.best.take(step, scores) | self.guard.take(step, scores)
            more = {}
        if is_saved:
            self._save(state, step, more)
        if scores is not None:
            self.guard.check()
        is_stop = is_stop or self.stops.poll()  # scoring and saving may have taken long
        if is_stop and (step < self.total_steps or scores is None):
            self.checkpoints.wait()
            raise Interrupted(
                f"stopped after step {step} of {self.total_steps} and saved; run the same command again to resume"
            )
        return True

    def score_start(self, state: TrainState) -> None:
        """Measure the score of the guard before the first step, if there is a guard.

        Raises:
            Interrupted: the run was to stop.
        """
        guard = self.config.guard
        if guard is None:
            return
        scores = self._scores([one for one in self.evaluations if guard.score.startswith(f"{one.name}/")], state)
        if scores is None:  # a preemption notice is reported once: another poll would not see it
            raise before_the_first_step()
        self.guard.start(scores)

    def _scores(self, due: Sequence[PlannedEvaluation], state: TrainState) -> dict[str, float] | None:
        """The scores of a state; None if a request to stop interrupted the evaluations."""

        def before_batch() -> None:
            self.watchdog.alive()
            if self.stops.poll():
                raise Interrupted("an evaluation is interrupted")

        if not due:
            return {}
        try:
            with (
                self.reports.throughput.paused(state.step),
                self.watchdog.phase(f"scoring the model of step {int(state.step)}"),
                called_before_batches(before_batch),
                self.compiles.first_use(*(one.name for one in due)),
            ):
                is_averaged = self.config.ema is not None and self.config.ema.evaluate
                return self.score(due, state.averaged if is_averaged else state.model)
        except Interrupted:
            _log.warning("scoring is interrupted; it is repeated when the run resumes")
            return None

    def _save(self, state: TrainState, step: int, more: Mapping[str, Any]) -> None:
        if self.checkpoints.latest() == step:  # the run resumed from it, to repeat its evaluations
            return
        self.check_lock()  # scoring may have taken long
        about = {**self.record, **self.reports.about(), **self.best.about(), **self.guard.about(), **more}
        with (
            self.reports.throughput.paused(state.step),
            self.watchdog.phase(f"saving step {step}"),
            self.compiles.first_use("checkpoint"),
        ):
            self.checkpoints.save(state, step=step, about=about)

    def _is_due(self, planned: PlannedEvaluation, step: int) -> bool:
        return step == self.total_steps or is_time(
            step, every_steps=planned.evaluation.config.every_steps, total_steps=self.total_steps, first=False
        )
