"""Retention of checkpoints: which of them are kept when a new one is written."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from clipa_eqx.evals.score_names import is_better
from clipa_eqx.experiment import CheckpointConfig

_log = logging.getLogger(__name__)


class BestScore:
    """The step with the best score so far, by the score that ``checkpoint.keep_best`` names.

    Attributes:
        step: that step; None without such a score.
        value: the score there.
    """

    def __init__(self, name: str | None) -> None:
        """Begin without a score. ``name`` is the score of ``checkpoint.keep_best``; None for none."""
        self._name = name
        self.step: int | None = None
        self.value: float | None = None

    def resume(self, about: Mapping[str, Any]) -> None:
        """Take what ``about`` recorded in the checkpoint that a run resumes from."""
        known: Mapping[str, Any] = about.get("best") or {}
        if self._name is not None and known.get("name") == self._name:
            self.step, self.value = known["step"], known["value"]

    def take(self, step: int, scores: Mapping[str, float]) -> bool:
        """Compare the scores of a step; True if it is the best so far. Of equal scores the first is the best."""
        found = scores.get(self._name) if self._name is not None else None
        if self._name is None or found is None or not math.isfinite(found):
            return False
        if self.value is not None and not is_better(self._name, found, self.value):
            return False
        _log.info("step %d is the best so far by %s: %g", step, self._name, found)
        self.step, self.value = step, found
        return True

    def about(self) -> dict[str, Any]:
        """The entry of a checkpoint's ``about`` that ``resume`` reads."""
        if self.step is None:
            return {}
        return {"best": {"name": self._name, "step": self.step, "value": self.value}}


def kept_steps(steps: Sequence[int], config: CheckpointConfig, *, best: int | None) -> set[int]:
    """The steps that are kept of those that are there: the latest, multiples of ``keep_every_steps``, and the best.

    >>> sorted(kept_steps([2, 4, 6, 8, 10], CheckpointConfig(every_steps=2, keep=1, keep_every_steps=4), best=6))
    [4, 6, 8, 10]
    """
    every = config.keep_every_steps
    latest = sorted(steps)[-config.keep :]
    return {step for step in steps if step in latest or step == best or (every is not None and step % every == 0)}
