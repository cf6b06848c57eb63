"""The study of the inverse scaling law: equal compute, runs that resume, and what its figure and table show."""

import io
import itertools
import json
import os
import re
import subprocess
import sys
from xml.etree import ElementTree as ET

import jax.random as jr
import numpy as np
import pytest
from PIL import Image
from support.paths import ROOT
from support.tiny_models import PIECES, WORDS

from clipa_eqx.cli import INTERRUPTED, OK, run
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.records import Record
from clipa_eqx.models.clip import CLIP
from clipa_eqx.saved.model import save_model
from clipa_eqx.tokenizer.vocabulary import write_vocab
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from clipa_eqx.training.loop import TrainResult
from clipa_eqx.training.stopping import Interrupted
from scripts import inverse_scaling_grid, inverse_scaling_run
from scripts.inverse_scaling import main
from scripts.inverse_scaling_figure import FIGURE, PAGE, README, RECORDED, costs, draw, filled, score, table
from scripts.inverse_scaling_grid import FULL, POINTS, SHORT, SIZES, STUDY, Point, grid, pretraining, tuning
from scripts.inverse_scaling_run import run_study


def rows(*, seeds=(0, 1), points=POINTS):
    """Results as a study writes them, with a score that is different in each run and stage."""
    found = []
    for number, one in enumerate(one for one in grid(seeds, STUDY) if one.point in points):
        scores = {
            stage: {
                "steps": steps,
                "seconds": 3.5,
                "scores": {
                    "validation": {"top1": 0.0, "top5": 0.01 * number + extra, "count": 100, "classes": 50},
                    "test": {"top1": 0.0, "top5": 0.01 * number + extra, "count": 300, "classes": 300},
                },
            }
            for stage, extra, steps in (("pretrain", 0.1, one.pretrain_steps), ("tune", 0.2, STUDY.tune))
        }
        tokens = {"image_tokens": one.point.image_tokens, "text_tokens": one.point.text_tokens}
        size = {"name": one.size.name, "width": one.size.width}
        found.append({"size": size, **tokens, "seed": one.seed, "pairs": one.pairs, "flops": one.flops, **scores})
    return found


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
def test_all_runs_of_a_size_spend_the_same_operations_within_a_step(size):
    budget = STUDY.pretrain * grid([0], STUDY)[SIZES.index(size)].full_step_flops
    runs = [one for one in grid([0, 1], STUDY) if one.size == size]
    for one in runs:
        config = pretraining(one, data="data")
        assert abs(config.duration.steps * one.step_flops - budget) < one.step_flops
        assert tuning(one, data="data", source="pretrain").duration.steps == STUDY.tune
    # Equal compute is not equal samples: fewer tokens buy more pairs.
    assert max(one.pairs for one in runs) > 1.8 * min(one.pairs for one in runs)


def test_each_size_has_every_point_once_and_full_size_with_every_seed():
    runs = grid([3, 4, 5], STUDY)
    assert len({one.name for one in runs}) == len(runs) == len(SIZES) * (len(POINTS) + 2)
    for size in SIZES:
        of_size = [(one.point, one.seed) for one in runs if one.size == size]
        assert sorted(map(str, of_size)) == sorted(map(str, [*((p, 3) for p in POINTS), (FULL, 4), (FULL, 5)]))


def test_runs_differ_in_size_and_tokens_only():
    """The fine-tuning of all runs of a size is the same except for its source; larger sizes are larger in every way."""
    first, second = (
        tuning(one, data="d", source="s")
        for one in grid([0], STUDY)
        if one.size == SIZES[0] and one.point in POINTS[:2]
    )
    assert first == second
    for small, large in itertools.pairwise(SIZES):
        assert small.width < large.width
        assert small.image_depth < large.image_depth
        assert small.text_depth <= large.text_depth


def png(rng):
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def small_study(tmp_path, monkeypatch):
    """A folder whose data are made already: noise with names. The grid is one model size with few tokens."""
    monkeypatch.setattr(inverse_scaling_grid, "SIZES", SIZES[:1])
    monkeypatch.setattr(inverse_scaling_grid, "POINTS", (Point(pixels=16, text_tokens=2),))
    folder = tmp_path / "study"
    data = folder / "data"
    data.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(vars(SHORT)))
    rng = np.random.default_rng(0)
    for name, count in (("train", 150), ("validation", 10), ("test", 20)):
        records = (Record(key=str(i), image=png(rng), captions=(WORDS[i % 40],), label=i % 10) for i in range(count))
        write_records(records, data / name, class_names=WORDS[:10])
    write_vocab(PIECES, data / "vocab.txt")
    return folder


def save_untrained(config, workdir):
    """Leave a model folder and a metric log as ``train`` does, without training."""
    steps = config.duration.steps
    (workdir / "model").parent.mkdir(parents=True, exist_ok=True)
    (workdir / "metrics.jsonl").write_text(json.dumps({"step": steps, "seconds_per_step": 0.5, "loss": 1.0}) + "\n")
    model = CLIP.init(config.model, key=jr.key(config.seed))
    tokenizer = Tokenizer.from_file(config.data.vocab)
    save_model(workdir / "model", model, tokenizer=tokenizer, preprocess=config.eval_image, provenance={})
    return TrainResult(steps, {}, workdir / "model")


def test_an_interrupted_study_resumes_and_repeats_no_finished_run(small_study, monkeypatch, capsys):
    asked = []

    def interrupted_at(stage):
        def train(config, workdir):
            asked.append(workdir.relative_to(small_study).as_posix())
            if workdir.name == stage:
                raise Interrupted("stopped")
            return save_untrained(config, workdir)

        return train

    monkeypatch.setattr(inverse_scaling_run, "train", interrupted_at("pretrain"))
    assert run_study(small_study, seeds=[0], is_short=True) == INTERRUPTED
    assert not (small_study / "results.json").exists()
    monkeypatch.setattr(inverse_scaling_run, "train", interrupted_at(None))
    assert run(lambda: main(["--short", "--seeds", "0", "--folder", str(small_study)])) == OK
    said = capsys.readouterr()
    assert "run 1 of 1, small-16px-t2-seed0: 4 + 1 steps\n" in said.err
    assert said.out == f"1 run: {small_study / 'results.json'} and {small_study / 'figure.svg'}\n"
    place = "small-16px-t2-seed0"
    assert asked == [f"{place}/{stage}" for stage in ("pretrain", "pretrain", "tune")]
    first = (small_study / "results.json").read_text()
    assert run_study(small_study, seeds=[0], is_short=True) == OK
    assert len(asked) == 3
    assert (small_study / "results.json").read_text() == first
    (row,) = json.loads(first)["runs"]
    assert (row["pretrain"]["steps"], row["tune"]["steps"]) == (4, 1)
    assert (row["pretrain"]["seconds"], row["tune"]["seconds"]) == (2.0, 0.5)
    assert {name: one["count"] for name, one in row["tune"]["scores"].items()} == {"validation": 10, "test": 20}
    ET.fromstring((small_study / "figure.svg").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_short_study_draws_each_curve(tmp_path):
    folder = tmp_path / "study"
    done = subprocess.run(
        [sys.executable, "scripts/inverse_scaling.py", "--short", "--seeds", "0", "1", "--folder", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"run 18 of 18, large-24px-t8-seed1: 2 \+ 1 steps; \d+ min so far, about \d+ min left", done.stderr
    )
    found = json.loads((folder / "results.json").read_text())
    assert found["planned_runs"] == len(found["runs"]) == 18
    assert {(row["image_tokens"], row["text_tokens"]) for row in found["runs"]} == {
        (10, 8),
        (2, 8),
        (5, 8),
        (10, 2),
        (10, 4),
    }
    check_figure((folder / "figure.svg").read_text(encoding="utf-8"), found["runs"])


def check_figure(svg, found):
    """Two curves per size and panel, with the points of the first seed; a ring per stage for each other seed."""
    ET.fromstring(svg)
    sizes = list(dict.fromkeys(row["size"]["name"] for row in found))
    assert all(f">{name}</text>" in svg for name in sizes)
    lines = re.findall(r'<polyline class="curve (\w+) s(\d)" points="([^"]+)"', svg)
    panels = 2
    for number in range(len(sizes)):
        for stage in ("pretrain", "tune"):
            points = [len(line.split()) for kind, curve, line in lines if (kind, curve) == (stage, str(number))]
            assert points == [3] * panels
    others = [row for row in found if row["seed"] != found[0]["seed"]]
    assert svg.count('<circle class="seed') == panels * 2 * len(others)


def test_a_figure_has_each_curve_at_its_scores():
    found = rows()
    svg = draw(found, planned=len(found))
    check_figure(svg, found)
    heights = [float(y) for y in re.findall(r'<path class="rule" d="M52 ([\d.]+)H', svg)]
    labels = [float(words) for words in re.findall(r'text-anchor="end">(\d+)</text>', svg)][: len(heights)]
    for number, size in enumerate(SIZES):
        shown = {float(y) for y in re.findall(rf'<circle class="d{number}" cx="[\d.]+" cy="([\d.]+)"', svg)}
        drawn = [row for row in found if row["size"]["name"] == size.name and row["seed"] == 0]
        scores = [score(row, stage) for row in drawn for stage in ("pretrain", "tune")]
        # Heights of the scores on the scale that the labels give.
        expected = np.interp(scores, labels, heights)
        np.testing.assert_allclose(sorted(shown), sorted({round(y, 1) for y in expected}), atol=0.11)


def test_a_figure_of_an_unfinished_study_shows_what_there_is():
    found = rows(seeds=(0,), points=POINTS[:2])
    svg = draw(found, planned=15)
    assert "6 of 15 runs so far" in svg
    lines = re.findall(r'<polyline class="curve tune s0" points="([^"]+)"', svg)
    assert [len(line.split()) for line in lines] == [2, 1]
    ET.fromstring(draw(found[:1], planned=15))
    assert "so far" not in draw(found, planned=6)


def test_a_figure_follows_the_color_scheme():
    svg = draw(rows(), planned=18)
    light, dark = svg.split("<style>")[1].split("</style>")[0].split("@media(prefers-color-scheme:dark)")
    colored = set(re.findall(r"\.(\w+)\{(?:stroke|fill):#", light))
    assert {"page", "rule", "chance", "s0", "s1", "s2", "d0", "d1", "d2"} <= colored
    assert colored <= set(re.findall(r"\.(\w+)[,{]", dark))
    assert re.findall(r'(?:stroke|fill)="', svg) == []


def test_the_tables_have_each_run():
    found = rows()
    lines = [line.strip("| ").split(" | ") for line in table(found).splitlines()]
    assert lines[0][3:] == [size.name for size in SIZES]
    shown = {
        (*map(int, line[:3]), size.name): cell for line in lines[2:] for size, cell in zip(SIZES, line[3:], strict=True)
    }
    assert shown == {
        (row["image_tokens"], row["text_tokens"], row["seed"], row["size"]["name"]): (
            f"{score(row, 'pretrain'):.1f} → {score(row, 'tune'):.1f}"
        )
        for row in found
    }
    lines = costs(found).splitlines()[2:]
    assert len(lines) == len(found)
    assert lines[0] == "| small | 2 | 8 | 0 | 2226 + 250 | 316,928 | 0.421 | 7 |"


def test_the_table_of_an_unfinished_study_has_dashes():
    assert table(rows()[:4]).splitlines()[2] == "| 2 | 8 | 0 | 13.0 → 23.0 | - | - |"


def test_figure_and_tables_are_those_of_the_recorded_study():
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    found = recorded["runs"]
    svg = draw(found, planned=recorded["planned_runs"])
    assert FIGURE.read_text(encoding="utf-8") == svg, "run python scripts/inverse_scaling_figure.py"
    for page, content in ((README, table(found)), (PAGE, costs(found))):
        text = page.read_text(encoding="utf-8")
        assert content in text
        assert filled(text, content) == text, "run python scripts/inverse_scaling_figure.py"
    expected = {one.name: one for one in grid([0, 1, 2], STUDY)}
    for row in found:
        one = expected[f"{row['size']['name']}-{row['pixels']}px-t{row['text_tokens']}-seed{row['seed']}"]
        assert (row["flops"], row["pairs"], row["pretrain"]["steps"]) == (one.flops, one.pairs, one.pretrain_steps)


REFUSED = {
    "no number": (["--seeds", "x"], "'x' is not a seed"),
    "negative": (["--seeds=-1"], "'-1' is not a seed"),
    "twice": (["--seeds", "1", "0", "1"], "--seeds: 1 is given more than once"),
    "flag": (["--seed", "1"], "did you mean --seeds"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_one_error(case, capsys, tmp_path):
    arguments, words = REFUSED[case]
    assert run(lambda: main([*arguments, "--folder", str(tmp_path / "study")])) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "notes.txt"):
        assert run(lambda folder=folder: main(["--folder", str(folder)])) == 2
        assert f"--folder {folder} exists and holds no study" in capsys.readouterr().err
    assert run(lambda: main(["--folder", str(tmp_path / "notes.txt" / "study")])) == 2
    assert re.fullmatch(r"error: --folder .*/study cannot be made \(.*\); give another\n", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_short_study_and_a_full_one_cannot_share_a_folder(small_study, capsys):
    before = sorted(small_study.rglob("*"))
    assert run(lambda: main(["--folder", str(small_study)])) == 2
    assert "holds a study of 2 + 1 steps, and this one has 1000 + 250" in capsys.readouterr().err
    assert sorted(small_study.rglob("*")) == before


def test_help_needs_no_jax():
    code = (
        "import sys; from scripts.inverse_scaling import main\n"
        "try: main(['--help'])\n"
        "finally: assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--seeds" in done.stdout
