"""Scoring from the command line: what is scored, what the result says, and which mistakes end with one message."""

import dataclasses
import errno
import hashlib
import io
import json
import shlex
from functools import partial
from pathlib import Path

import jax
import jax.random as jr
import numpy as np
import pytest
from PIL import Image
from support.paths import ROOT
from support.tiny_models import PIECES, tiny_clip, tiny_run, tiny_tokenizer

from clipa_eqx.cli import FAILED, OK, USAGE, run
from clipa_eqx.commands import command_line
from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.records import Record
from clipa_eqx.durations import RunLength
from clipa_eqx.experiment import DataConfig
from clipa_eqx.optim import make_optimizer
from clipa_eqx.programs import score as score_program
from clipa_eqx.programs.evaluate import main
from clipa_eqx.saved.model import save_model
from clipa_eqx.tokenizer.vocabulary import write_vocab
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.run_folder import claim, run_record
from clipa_eqx.training.state import init_state

VOCAB = "0" * 64  # the identity of a vocabulary; these tests start nothing from the run

SCRIPT = ROOT / "scripts" / "evaluate.py"
NAMES, IMAGES = ("cat", "dog", "photo"), 7


def call(*argv):
    return run(partial(main, [str(one) for one in argv]))


def noise_png(seed):
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = [Record(key=str(i), image=noise_png(i), label=i % len(NAMES)) for i in range(IMAGES)]
    write_records(rows, folder / "labeled", class_names=NAMES)
    write_records(rows, folder / "nameless")
    write_records([Record(key="0", image=noise_png(0))], folder / "unlabeled", class_names=NAMES)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    preprocess = EvalImageConfig(size=(16, 16), resize="squash", mode="fast")
    return save_model(folder, tiny_clip(), tokenizer=tiny_tokenizer(), preprocess=preprocess, provenance={})


def score(model, data, out, *flags):
    return call(model, "--suite", "zero-shot", "--data", data, "--out", out, "--templates", "class_name_only", *flags)


def test_a_model_folder_is_scored_and_the_result_names_it(model_folder, data, tmp_path, capsys):
    out = tmp_path / "new" / "result.json"
    assert score(model_folder, data / "labeled", out) == OK
    result = json.loads(out.read_text())
    assert (result["suite"], result["count"], result["class_count"]) == ("zero-shot", IMAGES, len(NAMES))
    assert result["top5"] == 1.0  # three classes are all within the first five
    assert sum(result["per_class_correct"]) == result["correct_top1"]
    assert result["model"]["kind"] == "model folder"
    assert len(result["model"]["sha256"]) == 64
    passport = result["passport"]
    assert passport["model"]["weights"]["sha256"] == result["model"]["sha256"]
    assert (passport["data"]["count"], passport["classes"]["count"]) == (IMAGES, len(NAMES))
    assert passport["set"]["name"] is None
    flags = [f"not a published set: {IMAGES} images of {len(NAMES)} classes", "the records have no fingerprint"]
    assert [flag[: len(start)] for flag, start in zip(passport["set"]["flags"], flags, strict=True)] == flags
    assert passport["templates"] == {"count": 1, "sha256": hashlib.sha256(b"{}").hexdigest()}
    assert passport["classes"]["sha256"] == hashlib.sha256("\n".join(NAMES).encode()).hexdigest()
    assert passport["image"] == {
        "size": [16, 16],
        "resize": "squash",
        "mode": "fast",
        "interpolation": "bilinear",
        "antialias": True,
        "rounding": "nearest",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert passport["model"]["dtype"] == "float32"
    assert passport["model"]["config"]["image"]["blocks"]["norm_eps"] == 1e-6
    assert passport["tokenizer"] == {"vocab_sha256": tiny_tokenizer().vocab_sha256, "length": 8}
    assert passport["devices"] == {"data": 8, "fsdp": 1, "tensor": 1}
    assert "path" not in passport["model"]["weights"]
    assert result["preprocess"] == {"size": [16, 16], "resize": "squash", "mode": "fast"}
    assert result["versions"]["jax"] == jax.__version__
    assert "predictions" not in result
    shown = capsys.readouterr().out
    assert f"top-1 {100 * result['top1']:.2f} %" in shown
    assert f"\nset: {passport['set']['flags'][0]}\n  {passport['set']['flags'][1]}\n" in shown
    assert "\nclass names: complete in every prompt of 8 tokens\n" in shown
    classes, tune = (shlex.split(line, comments=True) for line in shown.split("next:\n")[1].splitlines())
    assert tune == shlex.split(command_line("train", "CONFIG.py", "--workdir", "NEW_RUN", "--init-from", model_folder))
    # The next command runs when it is pasted.
    assert call(*classes[classes.index(str(model_folder)) :]) == OK
    assert len(json.loads(Path(classes[-1]).read_text())["predictions"]) == IMAGES
    assert "--predictions" not in capsys.readouterr().out
    assert sorted(entry.name for entry in out.parent.iterdir()) == ["result-predictions.json", out.name]


def test_batch_size_changes_no_count_and_predictions_cover_each_image_once(model_folder, data, tmp_path):
    found = []
    for size in (3, 64):
        out = tmp_path / f"{size}.json"
        assert score(model_folder, data / "labeled", out, "--batch-size", size, "--predictions") == OK
        found.append(json.loads(out.read_text()))
    assert found[0]["predictions"] == found[1]["predictions"]
    assert found[0]["sample_id"] == list(range(IMAGES))
    assert found[0]["correct_top1"] == found[1]["correct_top1"]


def test_prompts_that_lose_their_class_name_are_printed(model_folder, data, tmp_path, capsys):
    (tmp_path / "templates.txt").write_text("{}\na a a a a a a {}\n")
    (tmp_path / "names.txt").write_text("dog\ncat cat\n" + "photo " * 9)
    write_records([Record(key="0", image=noise_png(0), label=2)], tmp_path / "set", class_names=("a", "b", "c"))
    flags = ["--templates-file", tmp_path / "templates.txt", "--class-names", tmp_path / "names.txt"]
    out = tmp_path / "result.json"
    assert call(model_folder, "--suite", "zero-shot", "--data", tmp_path / "set", "--out", out, *flags) == OK
    assert json.loads(out.read_text())["passport"]["class_names_cut"] == {
        "prompts": 4,
        "classes": 3,
        "classes_entirely": 1,
        "templates": 2,
        "templates_entirely": 1,
    }
    shown = "class names: complete in every prompt of 8 tokens for 0 of 3 classes, in none for 1; 0 of 2 templates keep"
    assert shown in capsys.readouterr().out


def test_records_of_another_fingerprint_end_before_the_model_is_loaded(model_folder, data, tmp_path, capsys):
    rows = [Record(key="0", image=noise_png(0), label=0)]
    write_records(rows, tmp_path / "set", class_names=NAMES, info={"content_fingerprint": "ab12"})
    out = tmp_path / "result.json"
    assert score(tmp_path / "no model", tmp_path / "set", out, "--expect-fingerprint", "cd34") == USAGE
    assert "has the fingerprint ab12, expected cd34" in capsys.readouterr().err
    assert not out.exists()
    assert score(model_folder, tmp_path / "set", out, "--expect-fingerprint", "AB12") == OK
    assert len(json.loads(out.read_text())["passport"]["set"]["flags"]) == 1  # its numbers


@pytest.mark.parametrize(("names", "count"), [("imagenet", "1,000"), ("names.txt", "2")])
def test_a_list_of_another_length_than_the_classes_ends_before_the_model_is_loaded(
    names, count, data, tmp_path, capsys
):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    given = names if names == "imagenet" else tmp_path / names
    assert score(tmp_path / "no model", data / "labeled", tmp_path / "result.json", "--class-names", given) == USAGE
    message = capsys.readouterr().err
    assert "has 3 classes (0 = cat, 1 = dog, 2 = photo)" in message
    assert f"has {count} names" in message
    assert not (tmp_path / "result.json").exists()


def test_folders_of_ids_are_scored_against_the_names_of_their_ids(model_folder, tmp_path):
    results = []
    for name, classes in (("ids", ("n02123045", "n02123394")), ("names", ("tabby cat", "Persian cat"))):
        rows = [Record(key=str(i), image=noise_png(i), label=i % 2) for i in range(4)]
        write_records(rows, tmp_path / name, class_names=classes)
        assert score(model_folder, tmp_path / name, tmp_path / f"{name}.json") == OK
        results.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert results[0]["prompts_sha256"] == results[1]["prompts_sha256"]
    assert score(model_folder, tmp_path / "ids", tmp_path / "list.json", "--class-names", "imagenet") == OK
    assert json.loads((tmp_path / "list.json").read_text())["prompts_sha256"] == results[0]["prompts_sha256"]


def test_templates_class_names_and_image_mode_come_from_the_flags(model_folder, data, tmp_path):
    templates, names, out = tmp_path / "templates.txt", tmp_path / "names.txt", tmp_path / "result.json"
    templates.write_text("a {}.\na photo of a {}\n")
    names.write_text("dog\ncat\nphoto\n")
    flags = ["--templates-file", templates, "--class-names", names, "--image-mode", "exact", "--no-canonicalize"]
    flags += ["--text-reduction", "syntax"]
    assert call(model_folder, "--suite", "zero-shot", "--data", data / "nameless", "--out", out, *flags) == OK
    result = json.loads(out.read_text())
    assert (result["template_count"], result["prompt_count"]) == (2, 6)
    assert result["preprocess"]["mode"] == "exact"
    settings = result["settings"]
    assert settings["templates"] == ["a {}.", "a photo of a {}"]
    assert (settings["class_names"], settings["class_names_file"]) == ("file", str(names))
    assert (settings["canonicalize"], settings["text_reduction"]) == (False, "syntax")


def test_templates_of_the_manifest_by_flag(model_folder, data, tmp_path, capsys):
    rows = [Record(key="0", image=noise_png(0), label=0)]
    write_records(rows, tmp_path / "set", class_names=("cat, dog",), info={"templates": ["a {c}", "{c}"]})
    flags = ["--suite", "zero-shot", "--templates", "manifest", "--commas-in-names", "--no-canonicalize"]
    assert call(model_folder, "--data", tmp_path / "set", "--out", tmp_path / "a.json", *flags) == OK
    result = json.loads((tmp_path / "a.json").read_text())
    assert (result["template_count"], result["settings"]["commas_in_names"]) == (2, True)
    assert result["prompts_sha256"] == hashlib.sha256(b"a cat, dog\ncat, dog").hexdigest()
    assert call(model_folder, "--data", data / "labeled", "--out", tmp_path / "b.json", *flags) == USAGE
    assert "has no templates in its manifest" in capsys.readouterr().err


@pytest.fixture
def workdir(data, tmp_path):
    """A run folder as an interrupted run leaves it: its record and the checkpoint of step 3."""
    vocab = tmp_path / "vocab.txt"
    write_vocab(PIECES, vocab)
    config = tiny_run()
    config = tiny_run(data=DataConfig(sources=config.data.sources, image=config.data.image, vocab=str(vocab)))
    record = run_record(config, [open_records(data / "labeled").manifest], vocab_sha256=VOCAB)
    claim(tmp_path / "run", record)
    optimizer = make_optimizer(config.optim, tiny_clip(), RunLength(total_steps=10))
    with Checkpoints(tmp_path / "run" / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(init_state(config.model, optimizer, key=jr.key(0)), step=3, about=record)
    return tmp_path / "run"


def test_a_run_folder_without_a_model_is_scored_at_its_last_checkpoint(workdir, model_folder, data, tmp_path, capsys):
    flags = ["--predictions", "--image-mode", "fast"]
    assert score(workdir, data / "labeled", tmp_path / "run.json", *flags) == OK
    assert "scoring on 8 x cpu" in (printed := capsys.readouterr().err)
    assert "images of 16 x 16 pixels, resize_small_crop, fast" in printed
    result = json.loads((tmp_path / "run.json").read_text())
    assert (result["model"]["kind"], result["model"]["step"]) == ("checkpoint", 3)
    assert result["preprocess"]["resize"] == "resize_small_crop"
    # Images are square, so crop and squash agree, and both models come from the same key.
    assert score(model_folder, data / "labeled", tmp_path / "model.json", *flags) == OK
    of_model = json.loads((tmp_path / "model.json").read_text())
    assert result["predictions"] == of_model["predictions"]
    assert result["model"]["leaves_sha256"] == of_model["passport"]["model"]["weights"]["leaves_sha256"]


def test_a_run_folder_with_a_model_is_scored_as_that_model(workdir, model_folder, data, tmp_path):
    (workdir / "model").symlink_to(model_folder)
    assert score(workdir, data / "labeled", tmp_path / "result.json") == OK
    assert json.loads((tmp_path / "result.json").read_text())["model"]["kind"] == "model folder"


@pytest.mark.parametrize(
    ("model", "folder", "flags", "words"),
    [
        ("absent", "labeled", (), "absent does not exist; expected a run folder or a model folder"),
        ("model", "absent", (), "does not exist"),
        ("model", "nameless", (), "no class names"),
        ("model", "unlabeled", (), "no label"),
        ("model", "labeled", ("--class-names", "absent.txt"), "absent.txt cannot be read"),
        ("model", "labeled", ("--batch-size", "0"), "batch_size"),
        ("model", "labeled", ("--workers", "-1"), "workers"),
    ],
)
def test_mistakes_give_one_message_exit_code_2_and_no_result(
    model_folder, data, tmp_path, capsys, model, folder, flags, words
):
    out = tmp_path / "result.json"
    assert score(model_folder.parent / model, data / folder, out, *flags) == USAGE
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_a_result_is_replaced_only_if_asked(model_folder, data, tmp_path, capsys):
    out = tmp_path / "result.json"
    out.write_text("mine")
    assert score(model_folder, data / "labeled", out) == USAGE
    assert "exists already" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert score(model_folder, data / "labeled", tmp_path) == USAGE
    assert score(model_folder, data / "labeled", out, "--overwrite") == OK
    assert json.loads(out.read_text())["count"] == IMAGES


def test_a_result_that_cannot_be_written_is_refused_before_the_work(model_folder, data, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "more" / "result.json"
    monkeypatch.setattr(score_program, "score", None)  # nothing calls it
    assert score(model_folder, data / "labeled", out) == USAGE
    assert f"--out {out} cannot be written: {tmp_path / 'file'} is a file" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_scores_are_shown_if_their_file_cannot_be_written(model_folder, data, tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(score_program, "write_text", refuse)
    assert score(model_folder, data / "labeled", tmp_path / "result.json") == USAGE
    said = capsys.readouterr()
    assert "top-1" in said.out
    assert "written to" not in said.out
    assert "result.json cannot be written (No space left on device)" in said.err


def test_a_missing_templates_file_and_an_unfinished_run_are_the_users_mistakes(data, tmp_path, capsys):
    flags = ("--suite", "zero-shot", "--data", data / "labeled", "--out", tmp_path / "result.json")
    assert call(tmp_path, *flags, "--templates-file", tmp_path / "none.txt") == USAGE
    assert "none.txt cannot be read" in capsys.readouterr().err
    write_vocab(PIECES, tmp_path / "vocab.txt")
    data_config = dataclasses.replace(tiny_run().data, vocab=str(tmp_path / "vocab.txt"))
    record = run_record(tiny_run(data=data_config), [open_records(data / "labeled").manifest], vocab_sha256=VOCAB)
    claim(tmp_path / "run", record)
    assert call(tmp_path / "run", *flags) == USAGE
    assert "no committed checkpoint yet" in capsys.readouterr().err


def test_a_bug_is_reported_as_a_failure_and_leaves_no_result(model_folder, data, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("clipa_eqx.programs.score.run_evaluation", broken)
    assert score(model_folder, data / "labeled", tmp_path / "result.json") == FAILED
    assert not any(tmp_path.iterdir())
