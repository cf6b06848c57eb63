"""Suites other than zero-shot by the command: their scores, and the mistakes with their flags."""

import io
import json
from functools import partial

import numpy as np
import pytest
from PIL import Image
from support.tiny_models import tiny_clip, tiny_tokenizer

from clipa_eqx import progress
from clipa_eqx.cli import OK, USAGE, run
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.records import Record
from clipa_eqx.programs.evaluate import main
from clipa_eqx.saved.model import save_model

NAMES = ("cat", "dog", "photo")


def call(*argv):
    return run(partial(main, [str(one) for one in argv]))


def noise_png(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suites")
    for name, first in (("train", 0), ("test", 50)):
        rows = [
            Record(
                key=str(i),
                image=noise_png(first + i),
                label=i % 3,
                captions=tuple(["a cat", "the dog", "photo of a cat"][: 1 + i % 3]),
            )
            for i in range(13)
        ]
        write_records(rows, folder / name, class_names=NAMES)
    write_records([Record(key="0", image=noise_png(0), label=0)], folder / "silent", class_names=NAMES)
    write_records([Record(key="0", image=noise_png(0), label=0)], folder / "other", class_names=("a", "b"))
    several = [Record(key=str(i), image=noise_png(i), extra={"labels": "0,1"}) for i in range(3)]
    write_records(several, folder / "several", class_names=NAMES)
    lacking = [Record(key=str(i), image=noise_png(i), label=i % 2) for i in range(4)]
    write_records(lacking, folder / "lacking", class_names=NAMES)
    write_records(rows, folder / "reordered", class_names=tuple(reversed(NAMES)))
    preprocess = EvalImageConfig(size=(16, 16), resize="squash", mode="fast")
    save_model(folder / "model", tiny_clip(), tokenizer=tiny_tokenizer(), preprocess=preprocess, provenance={})
    return folder


def evaluate(folder, suite, out, *flags, data="test"):
    return call(folder / "model", "--suite", suite, "--data", folder / data, "--out", out, *flags)


@pytest.mark.parametrize(
    ("suite", "flags", "shown"),
    [
        ("retrieval", [], "captions of an image: R@1 "),
        ("contrastive", ["--batch-size", "4"], "loss "),
        ("few-shot", ["--shots", "1", "2", "--seeds", "2"], "1-shot: "),
        ("linear-probe", ["--strengths", "0.01", "1", "100"], "top-1 "),
    ],
)
def test_a_suite_writes_its_scores_and_settings(folder, suite, flags, shown, tmp_path, capsys):
    fitted = ["--train", folder / "train"] if suite in ("few-shot", "linear-probe") else []
    assert evaluate(folder, suite, tmp_path / "result.json", *flags, *fitted) == OK
    assert shown in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["suite"], result["count"], result["settings"]["data"]) == (suite, 13, str(folder / "test"))
    if suite == "retrieval":
        assert result["caption_count"] == sum(1 + i % 3 for i in range(13))
        assert 0 <= result["text_to_image_recall@1"] <= result["text_to_image_recall@10"] <= 1
    if suite == "few-shot":
        assert result["2_shot"] == pytest.approx((result["2_shot/seed_0"] + result["2_shot/seed_1"]) / 2)
    if suite == "linear-probe":
        assert result["regularization"] in (0.01, 1, 100)


def test_a_classifier_scored_on_its_own_records_is_a_warning(folder, tmp_path, capsys):
    flags = ["--train", folder / "test", "--shots", "1", "--seeds", "1"]
    assert evaluate(folder, "few-shot", tmp_path / "result.json", *flags) == OK
    assert "few_shot: the classifier is scored on the records that it is fitted to" in capsys.readouterr().err
    assert evaluate(folder, "few-shot", tmp_path / "2.json", "--train", folder / "train", *flags[2:]) == OK
    assert "fitted to" not in capsys.readouterr().err


@pytest.mark.parametrize("suite", ["few-shot", "linear-probe"])
def test_encoding_and_fitting_show_their_progress(folder, suite, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_LINE", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    flags = ["--shots", "1"] if suite == "few-shot" else ["--strengths", "1", "100"]
    out = tmp_path / "result.json"
    assert evaluate(folder, suite, out, "--train", folder / "train", "--batch-size", "4", *flags) == OK
    shown = capsys.readouterr().err
    for part in (
        f"encoding images of {folder / 'train'}: ",
        f"encoding images of {folder / 'test'}: 13/13 images",
        "fitting few-shot classifiers: " if suite == "few-shot" else "fitting with regularization 100: ",
    ):
        assert part in shown


def test_the_batch_size_changes_no_recall(folder, tmp_path):
    found = []
    for size in (3, 64):
        out = tmp_path / f"{size}.json"
        assert evaluate(folder, "retrieval", out, "--batch-size", size, "--max-captions", "2") == OK
        found.append({name: value for name, value in json.loads(out.read_text()).items() if "recall" in name})
    assert found[0] == found[1]
    assert len(found[0]) == 6


@pytest.mark.parametrize(
    ("suite", "flags", "data", "said"),
    [
        ("retrieval", ["--templates", "clip_best"], "test", "--templates is for the suite zero-shot and has no effect"),
        ("zero-shot", ["--shots", "1"], "test", "--shots is for the suite few-shot"),
        ("few-shot", [], "test", "give labeled records for it with --train DIR"),
        ("few-shot", ["--train", "train", "--shots", "9"], "test", "class 0 has 5 training images, fewer than 9 shots"),
        ("linear-probe", ["--train", "other"], "test", "have other class names"),
        ("few-shot", ["--train", "reordered"], "test", "have the same class names in another order"),
        (
            "linear-probe",
            ["--train", "several"],
            "test",
            "record '0' has 2 labels, expected at most 1; zero-shot scoring",
        ),
        ("few-shot", ["--train", "lacking", "--shots", "1"], "test", "has no image of class 2, which 4 images of "),
        ("linear-probe", ["--train", "lacking"], "test", "has no image of class 2, which 4 images of "),
        ("few-shot", ["--train", "train", "--regularization", "0"], "test", "must be positive"),
        ("few-shot", ["--train", "train", "--shots", "0"], "test", "must be positive, got (0,), 3, 256 and 1024.0\n"),
        ("zero-shot", ["--max-labels", "0"], "test", "must be at least 1, got 256 and 0\n"),
        ("retrieval", ["--max-captions", "0"], "test", "must be at least 1, got 256 and 0\n"),
        ("linear-probe", ["--train", "train", "--validation", "2"], "test", ", 100.0) and 2.0\n"),
        ("retrieval", [], "silent", "record '0' has no caption"),
        ("contrastive", ["--batch-size", "1"], "test", "a comparison needs at least 2 pairs"),
    ],
)
def test_a_mistake_is_one_message(folder, suite, flags, data, said, tmp_path, capsys):
    words = [str(folder / word) if (folder / word).is_dir() else word for word in flags]
    assert evaluate(folder, suite, tmp_path / "result.json", *words, data=data) == USAGE
    assert said in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
