"""Scores of every suite in the training loop: names, steps and values; and sets that are refused before training."""

import json
import re
import shutil
from functools import partial

import jax
import pytest
from support import tiny_runs
from support.paths import ROOT
from support.scored_runs import SUITES, evaluations, scored_run, scores_of, write_set, write_sets

from clipa_eqx.cli import OK, run
from clipa_eqx.errors import ClipaError
from clipa_eqx.evals.contrastive import ContrastiveConfig
from clipa_eqx.evals.few_shot import FewShotConfig
from clipa_eqx.evals.linear_probe import LinearProbeConfig
from clipa_eqx.evals.retrieval import RetrievalConfig
from clipa_eqx.evals.score_names import score_names_of
from clipa_eqx.programs.evaluate import main
from clipa_eqx.training.loop import train
from clipa_eqx.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 6 steps on 8 devices with a checkpoint after step 3, next to its sets."""
    folder = tmp_path_factory.mktemp("scored")
    write_sets(folder)
    train(config(folder), folder / "run", devices=jax.devices(), compiler=tiny_runs.compile_once)
    return folder


def config(folder, **fields):
    return scored_run(folder, steps=6, **evaluations(folder, every_steps=4), **fields)


def scores(run_folder):
    return {line["step"]: found for line in read_metrics(run_folder / "metrics.jsonl") if (found := scores_of(line))}


def test_each_suite_is_scored_every_period_and_at_the_end_under_documented_names(folder):
    found = scores(folder / "run")
    assert list(found) == [4, 6]
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    expected = {
        *(f"zero_shot/{data}/top{k}" for data in ("test", "single") for k in (1, 5)),
        *(
            f"retrieval/{data}/{way}_recall@{k}"
            for data in ("test", "single")
            for way in ("image_to_text", "text_to_image")
            for k in (1, 5, 10)
        ),
        *(f"contrastive/{data}/{name}" for data in ("test", "single") for name in ("loss", "accuracy")),
        *(f"few_shot/test/{shots}_shot{seed}" for shots in (1, 3) for seed in ("", "/seed_0", "/seed_1")),
        "linear_probe/test/top1",
    }
    for values in found.values():
        assert values.keys() == expected
    assert set(score_names_of(config(folder).evaluations)) == expected  # before any of them has run
    for name in expected:
        suite, _, rest = name.split("/", 2)
        documented = re.sub(r"@\d+", "@<k>", re.sub(r"\d+_shot(/seed_)?\d*", r"<n>_shot\1", rest)).replace(
            "/seed_", "/seed_<i>"
        )
        row = next(line for line in page.splitlines() if line.startswith(f"| `{suite}/<set>/"))
        assert f"`{suite}/<set>/{documented}`" in row or f"`{documented}`" in row, (name, row)


def test_a_score_in_the_loop_is_that_of_evaluate_on_the_final_model(folder, tmp_path):
    """Both are on 8 devices."""
    in_loop = scores(folder / "run")[6]
    extra = {
        "zero_shot": ["--templates", "class_name_only"],
        "few_shot": ["--train", folder / "train", "--shots", "1", "3", "--seeds", "2"],
        "linear_probe": ["--train", folder / "train", "--strengths", "0.1", "10"],
    }
    for suite in SUITES:
        out = tmp_path / f"{suite}.json"
        flags = ["--suite", suite.replace("_", "-"), "--data", folder / "test", "--out", out, "--batch-size", "5"]
        argv = [str(word) for word in (folder / "run", *flags, *extra.get(suite, []))]
        assert run(partial(main, argv)) == OK
        result = json.loads(out.read_text())
        own = {name.split("/", 2)[2]: value for name, value in in_loop.items() if name.startswith(f"{suite}/test/")}
        assert own
        assert {name: result[name] for name in own} == own


def test_a_run_that_resumes_in_the_middle_has_the_same_scores(folder, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(folder / "run", again)
    shutil.rmtree(again / "checkpoints" / "6")
    shutil.rmtree(again / "model")
    train(config(folder), again, devices=jax.devices(), compiler=tiny_runs.compile_once)
    assert scores(again) == scores(folder / "run")
    lines = [[line["step"] for line in read_metrics(one / "metrics.jsonl")] for one in (again, folder / "run")]
    assert lines[0] == lines[1]


def never(*args):
    raise AssertionError("the step was compiled")


BAD = {
    "no captions": (
        lambda bad, good: {"retrieval": (RetrievalConfig(data=bad(captions=())),)},
        "retrieval evaluation 0: data folder {bad}: record '0' has no caption; this evaluation needs captioned "
        "records. Set --retrieval.0.data, or --retrieval none for no scores",
    ),
    "one record without a caption": (
        lambda bad, good: {"contrastive": (ContrastiveConfig(data=bad(without_caption=4)),)},
        "contrastive evaluation 0: data folder {bad}: record '4' has no caption; this evaluation needs captioned "
        "records. Set --contrastive.0.data, or --contrastive none for no scores",
    ),
    "no folder to fit to": (
        lambda bad, good: {"few_shot": (FewShotConfig(data=good, train=good + "-missing"),)},
        "few-shot evaluation 0: data folder {good}-missing does not exist",
    ),
    "other classes": (
        lambda bad, good: {"linear_probe": (LinearProbeConfig(data=good, train=bad(names=("cat", "wolf", "photo"))),)},
        "linear-probe evaluation 0: data folders {bad} and {good} have other class names",
    ),
    "one record without a label": (
        lambda bad, good: {"linear_probe": (LinearProbeConfig(data=good, train=bad(without_label=4)),)},
        "linear-probe evaluation 0: data folder {bad}: record '4' has no label",
    ),
    "too few images for the shots": (
        lambda bad, good: {"few_shot": (FewShotConfig(data=good, train=bad(), shots=(1, 3)),)},
        "few-shot evaluation 0: data folder {bad}: class 0 has 2 training images, fewer than 3 shots",
    ),
    "nothing to hold out": (
        lambda bad, good: {"linear_probe": (LinearProbeConfig(data=good, train=bad(count=3)),)},
        "linear-probe evaluation 0: no class of data folder {bad} has two images",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_set_that_cannot_be_scored_is_refused_before_training(case, tmp_path):
    def bad(*, count=6, without_caption=None, without_label=None, **fields):
        return write_set(
            tmp_path / "bad",
            first=0,
            count=count,
            changes=lambda i: {
                **({"captions": ()} if i == without_caption else {}),
                **({"label": None} if i == without_label else {}),
            },
            **fields,
        )

    fields_of, words = BAD[case]
    good = write_set(tmp_path / "good", first=50, count=6)
    fields = fields_of(bad, good)
    with pytest.raises(ClipaError) as caught:
        tiny_runs.train_on_one_device(tiny_runs.run_config(**fields), tmp_path / "run", compiler=never)
    assert str(caught.value).startswith(words.format(bad=tmp_path / "bad", good=good))
    assert not (tmp_path / "run").exists()
