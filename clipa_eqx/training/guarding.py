"""The guard during a run: the score before the first step, kept in checkpoints, and the end of a run that lost it."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipa_eqx.buckets.mirror import shown
from clipa_eqx.errors import CheckpointError, ConfigError, GuardError
from clipa_eqx.evals.evaluation import names_of
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import flat, to_json
from clipa_eqx.saved.kinds import CHECKPOINTS_NAME
from clipa_eqx.training.checkpoint_record import newest_record

_log = logging.getLogger(__name__)


class Guard:
    """The guarded score of a run: before the first step, and in the last evaluation. Without ``guard`` it does nothing.

    Attributes:
        before: the score before the first step; None if there is no guard, or it is not measured yet.
        last: step and value of the last score; None before the first evaluation.
    """

    def __init__(self, config: ExperimentConfig, run: Path) -> None:
        """Begin without a score; ``run`` is the run folder, for messages."""
        self._experiment, self._config, self._run = config, config.guard, run
        self._former: Mapping[str, Any] = {}
        self._measured_by: Mapping[str, Any] | None = _measurement(config)
        self.before: float | None = None
        self.last: tuple[int, float] | None = None

    def start(self, scores: Mapping[str, float]) -> None:
        """Take the score from those of the weights before the first step."""
        if self._config is not None:
            self.before = scores[self._config.score]
            _log.info(
                "guard: %s is %.4f before the first step; the run ends if it is worse by more than %g",
                *(self._config.score, self.before, self._config.largest_fall),
            )

    def resume(self, about: Mapping[str, Any]) -> None:
        """Take what ``about`` recorded in the checkpoint that a run resumes from.

        Raises:
            CheckpointError: the score of the guard was not measured before the first step of the run.
            GuardError: the score of that step was too low, and still is by the limit of this config.
        """
        known: Mapping[str, Any] = about.get("guard") or {}
        self._former = known
        if self._config is None:
            return
        if known.get("score") != self._config.score or known["before"] is None:
            former = f"it was {known['score']!r}" if known else "it had no guard"
            measured = former if known.get("score") != self._config.score else "the measurement was interrupted"
            raise CheckpointError(
                f"guard.score {self._config.score!r} was not measured before the first step of {shown(self._run)} "
                f"({measured}), so a fall cannot be seen; resume with the guard of before, or with --guard none, or "
                "train from the start in a new --workdir"
            )
        self.before = known["before"]
        self._measured_by = known.get("measured_by")  # records of early versions lack it
        if known["last"] is not None:
            self._take(*known["last"])
            self.check()

    def differences(self) -> list[str]:
        """The settings by which the score of a resumed run is no longer measured as before its first step."""
        if self._measured_by is None:
            return []
        before, now = (dict(flat(one)) for one in (self._measured_by, _measurement(self._experiment)))
        return [
            f"{name.replace('/', '.')}: {before.get(name, 'absent')} then, {now.get(name, 'absent')} now"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]

    def take(self, step: int, scores: Mapping[str, float]) -> bool:
        """Take the score of a step; returns whether it was too low."""
        if self._config is None or self._config.score not in scores:
            return False
        self._take(step, scores[self._config.score])
        return self._is_broken

    def check(self) -> None:
        """Raise GuardError if the last score was too low."""
        if self._is_broken:
            raise GuardError(self._message())

    def summary(self) -> str | None:
        """The score before and after; None without a guard or without one of the two."""
        if self._config is None or self.before is None or self.last is None:
            return None
        step, now = self.last
        score = self._config.score
        return f"guard: {score} was {self.before:.4f} before the first step and is {now:.4f} after step {step}"

    def about(self) -> dict[str, Any]:
        """The entry of a checkpoint's ``about`` that ``resume`` reads."""
        if self._config is None:  # a guard that is left out for a while keeps its score
            return {"guard": dict(self._former)} if self._former else {}
        known = {"score": self._config.score, "before": self.before, "last": self.last}
        return {"guard": known if self._measured_by is None else {**known, "measured_by": self._measured_by}}

    def _take(self, step: int, value: float) -> None:
        self.last = (step, value)

    @property
    def _is_broken(self) -> bool:
        if self._config is None or self.before is None or self.last is None:
            return False
        return not self._config.allows(self.before, self.last[1])

    def _message(self) -> str:
        assert self._config is not None
        assert self.before is not None
        assert self.last is not None
        step, now = self.last
        fall = self._config.fall(self.before, now)
        more = ""
        if math.isfinite(fall):
            more = f" To resume this run all the same, allow more: --guard.largest-fall {_above(fall)}"
        limit, rate = self._config.largest_fall, self._experiment.optim.peak_lr
        return (
            f"{self.summary()}: worse by {fall:.4f}, and guard.largest_fall allows {limit:g}. The run has ended; its "
            f"checkpoints are kept, also that of step {step}. In a new --workdir, try --optim.peak-lr below {rate:g}, "
            "or train fewer leaves (trainable, docs/finetuning.md). Or start there from weights between those of "
            f"init.source and of this run: init.surgery with Interpolate(source={shown(self._run)!r}, alpha=0.5), "
            f"before Lora (WiSE-FT, docs/training.md).{more}"
        )


def check_guard(config: ExperimentConfig, workdir: Path) -> None:
    """Check the guard of a run against its weights to start from, or the checkpoint it will resume from.

    Raises:
        ConfigError: the run starts from random weights.
        CheckpointError, GuardError: as ``Guard.resume``.
    """
    if config.guard is None:
        return
    if config.init is None:
        raise ConfigError(
            f"guard.score {config.guard.score!r} cannot fall: the run starts from random weights, which know nothing. "
            "Name the weights to start from with --init-from (or init), or leave out the guard with --guard none"
        )
    found = newest_record(workdir / CHECKPOINTS_NAME)
    if found is not None:
        guard = Guard(config, workdir)
        guard.resume(found.about)
        if differing := guard.differences():
            _log.warning(
                "guard: %s was measured before the first step with other settings, which alone may change it: %s",
                *(config.guard.score, "; ".join(differing)),
            )


def _measurement(config: ExperimentConfig) -> dict[str, Any] | None:
    """The settings that the guarded score depends on, as JSON: its evaluation and its images; None without a guard."""
    if config.guard is None:
        return None
    names = names_of(config.evaluations)
    found = next(i for i, name in enumerate(names) if config.guard.score.startswith(f"{name}/"))
    evaluation = to_json(config.evaluations[found])
    del evaluation["every_steps"]
    return {"evaluation": evaluation, "eval_image": to_json(config.eval_image)}


def _above(fall: float) -> str:
    """A limit of two digits above a fall.

    >>> _above(0.2111), _above(3.0)
    ('0.22', '3.01')
    """
    return f"{int(fall * 100 + 1) / 100:g}"
