"""Two scores compared: every planted difference is found, and its effect is measured alone."""

import dataclasses
import io
import json
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image
from support.tiny_models import PIECES, tiny_clip, tiny_tokenizer

from clipa_eqx.cli import OK, USAGE, run
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.records import Record
from clipa_eqx.programs import evaluate, explain
from clipa_eqx.programs.results import differences
from clipa_eqx.saved.model import save_model
from clipa_eqx.surgery import with_config, with_pixel_statistics
from clipa_eqx.tokenizer.wordpiece import Tokenizer

NAMES = ("cat", "dog", "photo")
PREPROCESS = EvalImageConfig(size=(16, 16), resize="squash", mode="fast")
OTHER_MEAN, OTHER_STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def noise_png(seed, *, height=48):
    """Smooth noise, brighter on one side, so that a crop and another shape show."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (6, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((20, height), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def other_vocabulary():
    """A tokenizer with the pieces of the names in another order."""
    pieces = list(PIECES)
    for a, b in (("cat", "dog"), ("photo", "w3")):
        i, j = pieces.index(a), pieces.index(b)
        pieces[i], pieces[j] = pieces[j], pieces[i]
    return Tokenizer(pieces=tuple(pieces), classes=bytes([4] * len(pieces)))


def with_eps(model, eps):
    towers = {
        name: dataclasses.replace(tower, blocks=dataclasses.replace(tower.blocks, norm_eps=eps))
        for name, tower in (("image", model.config.image), ("text", model.config.text))
    }
    return with_config(model, dataclasses.replace(model.config, **towers)).model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    rows = [Record(key=str(i), image=noise_png(i), label=i % 3, captions=("a cat", "dog")) for i in range(60)]
    write_records(rows, folder / "val", class_names=NAMES)
    write_records(rows[:47], folder / "part", class_names=NAMES)
    write_records(rows[:6], folder / "train", class_names=NAMES)
    write_records(rows[3:12], folder / "train2", class_names=NAMES)
    model = tiny_clip()
    models = {
        "model": (model, PREPROCESS, tiny_tokenizer()),
        "cropped": (model, EvalImageConfig(size=(16, 16), mode="fast"), tiny_tokenizer()),
        "exact": (model, dataclasses.replace(PREPROCESS, mode="exact"), tiny_tokenizer()),
        "eps": (with_eps(model, 0.5), PREPROCESS, tiny_tokenizer()),
        "weights": (tiny_clip(seed=1), PREPROCESS, tiny_tokenizer()),
        "large": (
            tiny_clip(seed=2, image={"image_size": (32, 32)}, blocks={"mlp_dim": 48}),
            dataclasses.replace(PREPROCESS, size=(32, 32)),
            tiny_tokenizer(),
        ),
        "vocabulary": (model, PREPROCESS, other_vocabulary()),
    }
    for name, (one, preprocess, tokenizer) in models.items():
        save_model(folder / name, one, tokenizer=tokenizer, preprocess=preprocess, provenance={})
    evaluated(folder, "model", folder / "base.json")
    return folder


def evaluated(folder, model, out, *flags, data="val", suite="zero-shot"):
    words = [folder / model, "--suite", suite, "--data", folder / data, "--out", out]
    assert run(partial(evaluate.main, [str(word) for word in (*words, *flags)])) == OK


def explained(*words):
    return run(partial(explain.main, [str(word) for word in words]))


def listed(capsys):
    """The lines that were printed, by their names."""
    return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)


PLANTED = [
    ("cropped", [], "val", "image/resize", "image/resize"),
    ("exact", [], "val", "image/mode", "image/mode"),
    ("eps", [], "val", "model/config/image/blocks/norm_eps", "model/config"),
    ("weights", [], "val", "model/weights/leaves_sha256", "model/weights"),
    ("large", [], "val", "model/config/image/image_size", "model"),
    ("vocabulary", [], "val", "tokenizer/vocab_sha256", "tokenizer/vocab_sha256"),
    ("model", ["--templates", "class_name_only"], "val", "prompts/sha256", "settings/templates"),
    ("model", ["--no-canonicalize"], "val", "settings/canonicalize", "settings/canonicalize"),
    ("model", ["--text-reduction", "syntax"], "val", "settings/text_reduction", "settings/text_reduction"),
    ("model", [], "part", "data/count", "data"),
]


@pytest.mark.parametrize(("model", "flags", "data", "path", "step"), PLANTED, ids=[row[3] for row in PLANTED])
def test_a_planted_difference_is_found_and_explains_all(folder, model, flags, data, path, step, tmp_path, capsys):
    evaluated(folder, model, tmp_path / "other.json", *flags, data=data)
    scores = [json.loads(file.read_text())["top1"] for file in (folder / "base.json", tmp_path / "other.json")]
    capsys.readouterr()
    assert explained(folder / "base.json", tmp_path / "other.json", "--data", folder / "val") == 1
    lines = listed(capsys)
    assert path in lines
    assert lines["top1"] == f"{scores[0]:.4f} and {scores[1]:.4f} ({scores[1] - scores[0]:+.4f})"
    steps = [name for name in lines if name.startswith("with ")]
    assert steps == [f"with {step} of the second", "with all of the second"]
    # One difference alone explains the score of the second result.
    for name in steps:
        assert lines[name].startswith(f"top1 {scores[1]:.4f} ({scores[1] - scores[0]:+.4f})")
    assert lines["as the first result"].startswith(f"top1 {scores[0]:.4f}, top5 ")
    assert not any(name.startswith("not measured") for name in lines)


def test_planted_statistics_of_pixels_are_found_and_scored(folder, tmp_path, capsys):
    """A result of other statistics has the score of a patch projection that undoes the change of the pixels."""
    result = json.loads((folder / "base.json").read_text())
    result["passport"]["image"] |= {"mean": OTHER_MEAN, "std": OTHER_STD}
    (tmp_path / "other.json").write_text(json.dumps(result))
    assert explained(folder / "base.json", tmp_path / "other.json", "--data", folder / "val") == 1
    lines = listed(capsys)
    assert lines["image/mean"] == "[0.485, 0.456, 0.406] and [0.48, 0.46, 0.41]"
    folded = with_pixel_statistics(tiny_clip(), mean=OTHER_MEAN, std=OTHER_STD).model
    save_model(tmp_path / "folded", folded, tokenizer=tiny_tokenizer(), preprocess=PREPROCESS, provenance={})
    evaluated(folder, tmp_path / "folded", tmp_path / "folded.json")
    expected = json.loads((tmp_path / "folded.json").read_text())["top1"]
    assert lines["with image/mean and image/std of the second"].startswith(f"top1 {expected:.4f}")


def test_equal_results_have_no_difference(folder, tmp_path, capsys):
    evaluated(folder, "model", tmp_path / "again.json", "--batch-size", "7")
    capsys.readouterr()
    assert explained(folder / "base.json", tmp_path / "again.json") == OK
    top1 = json.loads((folder / "base.json").read_text())["top1"]
    assert capsys.readouterr().out.splitlines() == [
        f"top1: {top1:.4f} and {top1:.4f} (+0.0000)",
        "top5: 1.0000 and 1.0000 (+0.0000)",
        "no difference in what decides the score",
        "different without effect on the score, except by rounding: settings/batch_size",
    ]


def test_the_place_of_equal_records_is_no_difference_and_moved_folders_can_be_given(folder, tmp_path, capsys):
    for name in ("part", "weights"):
        shutil.copytree(folder / name, tmp_path / name)
    evaluated(folder, "model", tmp_path / "a.json", data="part")
    evaluated(folder, tmp_path / "weights", tmp_path / "b.json", data=tmp_path / "part")
    shutil.move(tmp_path / "weights", tmp_path / "moved")
    shutil.rmtree(tmp_path / "part")
    capsys.readouterr()
    assert explained(tmp_path / "a.json", tmp_path / "b.json") == 1
    assert "data/folder" not in listed(capsys)
    command = (tmp_path / "a.json", tmp_path / "b.json", "--data", folder / "part")
    assert explained(*command) == USAGE
    assert str(tmp_path / "weights") in capsys.readouterr().err
    assert explained(*command, "--second-model", tmp_path / "moved") == 1
    lines = listed(capsys)
    top1 = json.loads((tmp_path / "b.json").read_text())["top1"]
    assert lines["with model/weights of the second"].startswith(f"top1 {top1:.4f}")
    assert explained(*command, "--second-model", folder / "model") == USAGE
    assert "has other weights than when it was scored" in capsys.readouterr().err


def test_missing_records_of_the_second_result_are_reported(folder, tmp_path, capsys):
    shutil.copytree(folder / "part", tmp_path / "part")
    evaluated(folder, "model", tmp_path / "b.json", data=tmp_path / "part")
    shutil.rmtree(tmp_path / "part")
    capsys.readouterr()
    assert explained(folder / "base.json", tmp_path / "b.json", "--data", folder / "val") == 1
    lines = listed(capsys)
    assert lines["with data of the second"] == (
        f"not scored: {tmp_path / 'part'} does not have the records of the second result"
    )
    assert lines["with all of the second"].endswith(f"; {folder / 'val'} with other records than in the result")


def test_given_records_are_scored_even_if_no_result_has_them(folder, tmp_path, capsys):
    write_records(
        [Record(key=f"other {i}", image=noise_png(100 + i), label=i % 3) for i in range(30)],
        tmp_path / "other",
        class_names=NAMES,
    )
    evaluated(folder, "weights", tmp_path / "b.json")
    for model in ("model", "weights"):
        evaluated(folder, model, tmp_path / f"{model}-other.json", data=tmp_path / "other")
    expected = [json.loads((tmp_path / f"{model}-other.json").read_text())["top1"] for model in ("model", "weights")]
    capsys.readouterr()
    assert explained(folder / "base.json", tmp_path / "b.json", "--data", tmp_path / "other") == 1
    lines = listed(capsys)
    for name, top1 in zip(("as the first result", "with all of the second"), expected, strict=True):
        assert lines[name].startswith(f"top1 {top1:.4f}")
        assert lines[name].endswith(f"; {tmp_path / 'other'} with other records than in the result")
    assert explained(folder / "base.json", tmp_path / "b.json", "--data", tmp_path / "none") == USAGE
    assert f"{tmp_path / 'none'}" in capsys.readouterr().err
    records = ("--data", folder / "val", "--train", folder / "val")
    assert explained(folder / "base.json", tmp_path / "b.json", *records) == USAGE
    assert "--train has no effect on results of the suite zero-shot; leave it out" in capsys.readouterr().err


def test_scores_that_differ_without_a_reason_are_reported(folder, tmp_path, capsys):
    result = json.loads((folder / "base.json").read_text()) | {"top1": 0.9}
    (tmp_path / "other.json").write_text(json.dumps(result))
    assert explained(folder / "base.json", tmp_path / "other.json", "--data", folder / "val") == 1
    shown = capsys.readouterr().out
    assert "the scores differ all the same" in shown
    assert "with all of the second: " in shown
    assert "  the result has top1 0.9000" in shown


def test_a_step_that_cannot_be_scored_does_not_stop_the_others(folder, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("cat\nphoto\ndog\n")
    evaluated(folder, "cropped", tmp_path / "other.json", "--class-names", names)
    names.unlink()
    capsys.readouterr()
    assert explained(folder / "base.json", tmp_path / "other.json", "--data", folder / "val") == 1
    lines = listed(capsys)
    assert lines["with settings/class_names of the second"].startswith("not scored: ")
    assert lines["with image/resize of the second"].startswith("top1 ")


def test_records_that_a_classifier_is_fitted_to_are_a_difference(folder, tmp_path, capsys):
    for name in ("train", "train2"):
        flags = ("--train", folder / name, "--shots", "1", "2", "--seeds", "1")
        evaluated(folder, "model", tmp_path / f"{name}.json", *flags, suite="few-shot")
    expected = json.loads((tmp_path / "train2.json").read_text())["2_shot"]
    capsys.readouterr()
    assert explained(tmp_path / "train.json", tmp_path / "train2.json", "--data", folder / "val") == 1
    lines = listed(capsys)
    assert "train/count" in lines
    assert "data/count" not in lines
    assert f"2_shot {expected:.4f}" in lines["with train of the second"]


def test_the_batch_size_decides_a_contrastive_score(folder, tmp_path, capsys):
    for size in ("4", "8"):
        evaluated(folder, "model", tmp_path / f"{size}.json", "--batch-size", size, suite="contrastive")
    expected = json.loads((tmp_path / "8.json").read_text())["loss"]
    capsys.readouterr()
    assert explained(tmp_path / "4.json", tmp_path / "8.json", "--data", folder / "val") == 1
    lines = listed(capsys)
    assert lines["settings/batch_size"] == "4 and 8"
    assert lines["with settings/batch_size of the second"].startswith(f"loss {expected:.4f}")


def test_mistakes_are_one_message(folder, tmp_path, capsys):
    base = json.loads((folder / "base.json").read_text())
    bad = {
        "old": ({}, "has no passport: it is no result of evaluate.py, or one of an earlier version; score"),
        "list": ([], "has no passport: it is no result"),
        "suite": (base | {"suite": "captioning"}, "of the suite 'captioning', expected one of zero-shot, "),
        "other": (base | {"suite": "retrieval"}, "compare two results of one suite"),
        "part": (base | {"model": None}, "lacks model; score the model again"),
    }
    for name, (content, said) in bad.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        assert explained(folder / "base.json", tmp_path / f"{name}.json") == USAGE
        assert said in capsys.readouterr().err
    assert explained(folder / "base.json", tmp_path / "none.json") == USAGE
    assert "none.json cannot be read (No such file or directory); give a result" in capsys.readouterr().err
    (tmp_path / "list.csv").write_text("file,caption\n")
    assert explained(folder / "base.json", tmp_path / "list.csv") == USAGE
    assert "list.csv is not JSON: " in capsys.readouterr().err
    assert explained(folder / "base.json", folder / "base.json", "--first-model", folder / "model") == USAGE
    assert "give --data too" in capsys.readouterr().err


def test_what_one_version_does_not_record_is_no_difference():
    passports = [
        {"image": {"mode": "fast"}},
        {"image": {"mode": "fast", "rounding": "nearest"}, "code": {"version": "1"}},
    ]
    first, second = ({"suite": "zero-shot", "passport": passport} for passport in passports)
    found = differences(first, second)
    assert (found.deciding, found.others) == ({}, {})
    assert found.recorded_once == ("image/rounding", "code/version")


def test_what_follows_from_other_values_has_no_effect():
    def result(kind, leaves, flags):
        weights = {"kind": kind, "leaves_sha256": leaves}
        return {
            "suite": "zero-shot",
            "passport": {"model": {"weights": weights}, "set": {"name": None, "flags": flags}},
        }

    run = result("checkpoint", "ab", ["a flag"])
    assert list(differences(run, result("model folder", "ab", [])).deciding) == []
    assert list(differences(run, result("checkpoint", "cd", [])).deciding) == ["model/weights/leaves_sha256"]
