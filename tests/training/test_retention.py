"""Retention of checkpoints: the latest, one per period, and the best, also over an interruption."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_runs

from clipa_eqx.errors import ConfigError
from clipa_eqx.evals.contrastive import ContrastiveConfig
from clipa_eqx.experiment import CheckpointConfig
from clipa_eqx.training import loop
from clipa_eqx.training.retention import kept_steps
from clipa_eqx.training.space import most_checkpoints

pytestmark = pytest.mark.usefixtures("quick_compile")

SCORE = "contrastive/records/accuracy"


def run_config(keep_best=SCORE, **kept):
    scored = ContrastiveConfig(data=str(tiny_runs.folder() / "records"), every_steps=3)
    checkpoint = CheckpointConfig(every_steps=4, keep=1, keep_best=keep_best, **kept)
    return tiny_runs.run_config(contrastive=(scored,), checkpoint=checkpoint)


class Scores:
    def __init__(self, accuracy):
        self.accuracy = accuracy

    def scores(self):
        return {"loss": 1.0, "accuracy": self.accuracy}


def saved(run):
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


def test_the_best_and_one_of_each_period_survive_the_deletion_of_older_ones(tmp_path, monkeypatch):
    scores = iter([0.1, 0.9, float("nan"), 0.3])  # of steps 3, 6, 9 and 12
    monkeypatch.setattr(loop, "evaluate_model", lambda *args, **rest: Scores(next(scores)))
    config, steps = run_config(keep_every_steps=8), []

    def dying(*args):
        step = tiny_runs.compile_once(*args)

        def stops_once(state, batch):
            steps.append(int(state.step) + 1)
            if steps.count(11) == 1 and steps[-1] == 11:
                raise ValueError("planted")
            return step(state, batch)

        return stops_once

    with pytest.raises(ValueError, match="planted"):
        tiny_runs.train_on_one_device(config, tmp_path, compiler=dying)
    assert saved(tmp_path) == [6, 8]  # step 6 was saved because it was the best
    scores = iter([0.2, 0.3])
    tiny_runs.train_on_one_device(config, tmp_path, compiler=dying)
    assert saved(tmp_path) == [6, 8, 12]


def test_a_score_that_the_run_does_not_have_is_refused_with_those_that_it_has():
    with pytest.raises(ConfigError, match=r"'top1' is no score of this run; its scores are contrastive/records/loss, "):
        run_config(keep_best="top1")
    with pytest.raises(ConfigError, match="'x' is no score of this run; it has no evaluation"):
        tiny_runs.run_config(checkpoint=CheckpointConfig(keep_best="x"))


def test_a_period_at_which_nothing_is_saved_is_refused():
    with pytest.raises(ConfigError, match=r"keep_every_steps is 6, .* saved every 4 steps; give a multiple of 4"):
        CheckpointConfig(every_steps=4, keep_every_steps=6)


@given(st.integers(1, 4), st.integers(1, 4), st.none() | st.integers(1, 4), st.integers(1, 60), st.data())
def test_a_run_never_has_more_checkpoints_than_were_counted(every, keep, often, total, data):
    best = data.draw(st.none() | st.just("a"))
    config = CheckpointConfig(
        every_steps=every, keep=keep, keep_every_steps=None if often is None else often * every, keep_best=best
    )
    bests = data.draw(st.sets(st.integers(1, total))) if best else set()
    there, most, latest_best = set(), 0, None
    for step in range(1, total + 1):
        if step in bests:
            latest_best = step
        if step in bests or step % every == 0 or step == total:
            there.add(step)
            most = max(most, len(there))
            there = kept_steps(sorted(there), config, best=latest_best)
    if best:
        assert most <= most_checkpoints(config, total_steps=total)
    else:
        assert most == most_checkpoints(config, total_steps=total)
