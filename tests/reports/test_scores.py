"""Scores in the log: those of every suite are found, named, drawn and listed."""

import dataclasses

import numpy as np
import pytest
from support.run_folders import metric_line

from clipa_eqx.evals.contrastive import ContrastiveResult
from clipa_eqx.evals.counting import ZeroShotResult
from clipa_eqx.evals.evaluation import EvaluationConfig, suite_of
from clipa_eqx.evals.few_shot import FewShotResult
from clipa_eqx.evals.linear_probe import LinearProbeResult
from clipa_eqx.evals.retrieval import RANKS, RetrievalResult
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.programs.terminal_plot import Paper, plot_charts
from clipa_eqx.reports.curves import run_charts
from clipa_eqx.reports.scores import SUITES, latest_scores, score_name, score_names

NONE = np.zeros(0, np.int32)
RESULTS = {
    "zero_shot": ZeroShotResult(
        count=8,
        correct_top1=2,
        correct_top5=4,
        per_class_count=NONE,
        per_class_correct=NONE,
        sample_id=NONE,
        predictions=np.zeros((0, 5), np.int32),
    ),
    "retrieval": RetrievalResult(
        images=4,
        texts=8,
        image_to_text={k: n + 1 for n, k in enumerate(RANKS)},
        text_to_image={k: n + 2 for n, k in enumerate(RANKS)},
        truncated=0,
    ),
    "contrastive": ContrastiveResult(count=4, loss=1.25, accuracy=0.75),
    "few_shot": FewShotResult(count=8, correct={(1, 0): 2, (1, 1): 4, (10, 0): 6, (10, 1): 7}),
    "linear_probe": LinearProbeResult(count=8, correct=5, regularization=1.0, validation={1.0: 0.5}),
}
CHARTS = {
    "zero-shot on a b, %": {"top1": 25.0, "top5": 50.0},
    "retrieval on a b, image to text, %": {"recall@1": 25.0, "recall@5": 50.0, "recall@10": 75.0},
    "retrieval on a b, text to image, %": {"recall@1": 25.0, "recall@5": 37.5, "recall@10": 50.0},
    "contrastive on a b, loss, nats": {"loss": 1.25},
    "contrastive on a b, accuracy, %": {"accuracy": 75.0},
    "few-shot on a b, %": {"1 shot": 37.5, "10 shots": 81.25},
    "linear probe on a b, %": {"top1": 62.5},
}


@pytest.fixture
def lines():
    """A log whose last line has the scores of all suites, as the training loop names them."""
    scores = {f"{suite}/a b/{name}": value for suite in RESULTS for name, value in RESULTS[suite].scores().items()}
    return [metric_line(1, time=0), metric_line(2, time=0, **scores)]


def test_the_suites_are_those_of_a_config():
    fields = {field.name for field in dataclasses.fields(ExperimentConfig)}
    assert set(SUITES) <= fields
    kinds = EvaluationConfig.__args__
    assert {suite_of(object.__new__(kind)) for kind in kinds} == set(SUITES) == set(RESULTS)


def test_the_scores_of_every_suite_have_charts(lines):
    charts = {chart.title: {c.name: c.points[-1][1] for c in chart.curves} for chart in run_charts(lines)}
    assert {title: curves for title, curves in charts.items() if " on a b" in title} == CHARTS
    assert all(curve.is_marked for chart in run_charts(lines) if " on " in chart.title for curve in chart.curves)


def test_the_terminal_draws_every_suite(lines):
    text = "\n".join(plot_charts(run_charts(lines), Paper(width=100)))
    for title, curves in CHARTS.items():
        assert title.removesuffix(", %") in text
        assert all(f"{value:.4g}" in text for value in curves.values())


def test_the_latest_value_of_each_score_is_listed_with_its_step(lines):
    earlier = {**lines[0], "zero_shot/a b/top1": 0.125, "zero_shot/old/top1": 0.5}
    found = {
        (one.name.evaluation, one.name.score): (one.value, one.step) for one in latest_scores([earlier, *lines[1:]])
    }
    assert found["zero-shot on a b", "top-1"] == (0.25, 2)
    assert found["zero-shot on old", "top-1"] == (0.5, 1)
    assert found["retrieval on a b", "text to image, recall@5"] == (0.375, 2)
    assert found["few-shot on a b", "10 shots"] == (0.8125, 2)
    assert not [name for name in found if "seed" in name[1]]  # their mean is listed
    assert [one.key for one in score_names(lines) if one.is_repeat] == [
        f"few_shot/a b/{shots}_shot/seed_{seed}" for shots, seed in RESULTS["few_shot"].correct
    ]


@pytest.mark.parametrize("key", ["loss", "lr", "grad_norm/image", "zero_shot", "zero_shot/top1", "other/a/top1"])
def test_other_numbers_are_no_scores(key):
    assert score_name(key) is None
