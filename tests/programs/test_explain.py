"""Two scores compared: every planted difference is found, and its effect is measured alone."""

import dataclasses
import io
import json
from functools import partial

import jax.random as jr
import numpy as np
import pytest
from PIL import Image
from support.tiny_models import tiny_clip, tiny_tokenizer

from clipa_eqx.cli import OK, USAGE, run
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.records import Record
from clipa_eqx.models.clip import CLIP
from clipa_eqx.programs import evaluate, explain
from clipa_eqx.programs.explain import differences
from clipa_eqx.saved.model import save_model

NAMES = ("cat", "dog", "photo")
PREPROCESS = EvalImageConfig(size=(16, 16), resize="squash", mode="fast")


def noise_png(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 20, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    rows = [Record(key=str(i), image=noise_png(i), label=i % 3) for i in range(12)]
    write_records(rows, folder / "val", class_names=NAMES)
    write_records(rows[:7], folder / "part", class_names=NAMES)
    model = tiny_clip()
    eps = dataclasses.replace(model.config.image.blocks, norm_eps=1e-3)
    config = dataclasses.replace(model.config, image=dataclasses.replace(model.config.image, blocks=eps))
    models = {
        "model": (model, PREPROCESS),
        "cropped": (model, EvalImageConfig(size=(16, 16), mode="fast")),
        "exact": (model, dataclasses.replace(PREPROCESS, mode="exact")),
        "eps": (CLIP.init(config, key=jr.key(0)), PREPROCESS),
    }
    for name, (one, preprocess) in models.items():
        save_model(folder / name, one, tokenizer=tiny_tokenizer(), preprocess=preprocess, provenance={})
    evaluated(folder, "model", folder / "base.json")
    return folder


def evaluated(folder, model, out, *flags, data="val"):
    words = [folder / model, "--suite", "zero-shot", "--data", folder / data, "--out", out]
    assert run(partial(evaluate.main, [str(word) for word in (*words, *flags)])) == OK


def explained(*words):
    return run(partial(explain.main, [str(word) for word in words]))


@pytest.mark.parametrize(
    ("model", "flags", "data", "path"),
    [
        ("cropped", [], "val", "image/resize"),
        ("exact", [], "val", "image/mode"),
        ("eps", [], "val", "model/config/image/blocks/norm_eps"),
        ("model", ["--templates", "class_name_only"], "val", "prompts/sha256"),
        ("model", ["--no-canonicalize"], "val", "settings/canonicalize"),
        ("model", ["--text-reduction", "syntax"], "val", "settings/text_reduction"),
        ("model", [], "part", "data/count"),
    ],
)
def test_a_planted_difference_is_found(folder, model, flags, data, path, tmp_path, capsys):
    evaluated(folder, model, tmp_path / "other.json", *flags, data=data)
    capsys.readouterr()
    assert explained(folder / "base.json", tmp_path / "other.json") == 1
    assert path in [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]


def test_planted_statistics_of_pixels_and_vocabularies_are_found(folder, tmp_path, capsys):
    result = json.loads((folder / "base.json").read_text())
    result["passport"]["image"]["mean"] = [0.5, 0.5, 0.5]
    result["passport"]["tokenizer"]["vocab_sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(result))
    assert explained(folder / "base.json", tmp_path / "other.json") == 1
    shown = capsys.readouterr().out
    assert "image/mean: [0.485, 0.456, 0.406] and [0.5, 0.5, 0.5]" in shown
    assert "tokenizer/vocab_sha256: " in shown


def test_equal_results_have_no_difference(folder, tmp_path, capsys):
    evaluated(folder, "model", tmp_path / "again.json")
    capsys.readouterr()
    assert explained(folder / "base.json", tmp_path / "again.json") == OK
    assert capsys.readouterr().out == "no difference in what decides the score\n"


def test_each_difference_is_scored_alone(folder, tmp_path, capsys):
    evaluated(folder, "cropped", tmp_path / "other.json", "--templates", "class_name_only")
    capsys.readouterr()
    assert explained(folder / "base.json", tmp_path / "other.json", "--data", folder / "val") == 1
    lines = capsys.readouterr().out.splitlines()
    scores = dict(line.split(": ", 1) for line in lines if line.startswith(("as the", "with ")))
    assert list(scores) == [
        "as the first result",
        "with image/resize of the second",
        "with settings/templates of the second",
        "with all of the second",
    ]
    for name, file in (
        ("as the first result", folder / "base.json"),
        ("with all of the second", tmp_path / "other.json"),
    ):
        assert f"top1 {json.loads(file.read_text())['top1']:.4f}" in scores[name]


def test_mistakes_are_one_message(folder, tmp_path, capsys):
    (tmp_path / "old.json").write_text("{}")
    assert explained(folder / "base.json", tmp_path / "old.json") == USAGE
    assert "has no passport; score the model again" in capsys.readouterr().err
    assert explained(folder / "base.json", tmp_path / "none.json") == USAGE
    assert "none.json cannot be read" in capsys.readouterr().err


def test_the_file_of_equal_weights_and_the_flags_of_the_set_are_no_difference():
    def passport(kind, leaves, flags):
        return {"model": {"weights": {"kind": kind, "leaves_sha256": leaves}}, "set": {"name": None, "flags": flags}}

    run = passport("checkpoint", "ab", ["a flag"])
    assert differences(run, passport("model folder", "ab", [])) == {}
    assert list(differences(run, passport("checkpoint", "cd", []))) == ["model/weights/leaves_sha256"]
    assert len(differences(passport("a", None, []), passport("b", None, []))) == 1


def test_devices_are_no_difference():
    assert differences({"devices": {"data": 1}, "a": 1}, {"devices": {"data": 8}, "a": 1}) == {}
