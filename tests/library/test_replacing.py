"""Writing a folder deletes only folders that are completely ours, and leftovers of killed commands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.flax_checkpoints import convert, tiny_arrays, write_npz
from support.paths import ROOT
from support.tiny_models import tiny_clip, tiny_tokenizer

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.errors import CheckpointError, ConversionError
from clipa_eqx.replacing import new_folder, remove_leftovers, temporary_path
from clipa_eqx.saved.description import MODEL_FOLDER
from clipa_eqx.saved.model import load_model, save_model
from conversion.flax_clipa.__main__ import main as flax
from conversion.open_clip.__main__ import main as open_clip

pytestmark = pytest.mark.usefixtures("quick_compile")


def save(folder, seed=0, *, overwrite=False):
    parts = {"tokenizer": tiny_tokenizer(), "preprocess": EvalImageConfig(size=(16, 16)), "provenance": {}}
    return save_model(folder, tiny_clip(seed), overwrite=overwrite, **parts)


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "model")


@pytest.mark.parametrize("entry", ["official.npz", ".git/HEAD", "tokenizer/notes.txt", "a/b/c", "README.md"])
def test_a_model_folder_with_anything_else_in_it_is_not_replaced(entry, model):
    (model / entry).parent.mkdir(parents=True, exist_ok=True)
    (model / entry).write_text("mine")
    before = content(model)
    with pytest.raises(CheckpointError, match=rf"it is a model folder that also holds {entry.split('/')[0]}"):
        save(model, 1, overwrite=True)
    assert content(model) == before


def test_an_empty_folder_and_a_link_count_as_something_else(model, tmp_path):
    (model / "empty").mkdir()
    (tmp_path / "elsewhere").write_text("mine")
    (model / "provenance.json").unlink()
    (model / "provenance.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"holds empty, provenance.json; move that"):
        save(model, 1, overwrite=True)


@pytest.mark.parametrize("config", ['{"hidden_size": 3}', '{"schema": 2, "model": {}}', "{", "[" * 100_000])
def test_file_names_alone_do_not_make_a_folder_of_another_program_a_model_folder(config, model):
    (model / "config.json").write_text(config)
    before = content(model)
    with pytest.raises(CheckpointError, match="is not a model folder, so it is not overwritten"):
        save(model, 1, overwrite=True)
    assert content(model) == before


def test_files_that_come_into_the_folder_meanwhile_are_kept(model):
    writing = new_folder(model, MODEL_FOLDER, overwrite=True)
    assert writing.__enter__().is_dir()
    (model / "notes").write_text("mine")
    with pytest.raises(CheckpointError, match="holds notes"):
        writing.__exit__(None, None, None)
    assert (model / "notes").read_text() == "mine"
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_the_current_folder_can_be_written_to(tmp_path, monkeypatch):
    source = write_npz(tmp_path / "x.npz", tiny_arrays())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    other = convert(source, tmp_path / "other")
    flags = ("--config", str(tmp_path / "config.json"), "--vocab", str(tmp_path / "vocab.txt"))
    flax(["import", str(source), ".", *flags])
    assert content(Path()).keys() == content(other).keys()
    flax(["import", str(source), ".", *flags, "--overwrite"])
    load_model(tmp_path / "here")
    assert {path.name for path in tmp_path.iterdir()} == {"x.npz", "here", "other", "vocab.txt", "config.json"}


def test_the_folder_that_a_link_points_to_is_replaced_and_the_link_stays(model, tmp_path):
    (tmp_path / "link").symlink_to(model)
    save(tmp_path / "link", 1, overwrite=True)
    assert (tmp_path / "link").readlink() == model
    assert float(load_model(model).model.image.class_token[0]) == float(tiny_clip(1).image.class_token[0])
    assert {path.name for path in tmp_path.iterdir()} == {"model", "link"}
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for nowhere in ("loop", 300 * "x"):
        with pytest.raises(CheckpointError):
            save(tmp_path / nowhere, overwrite=True)


@pytest.mark.parametrize("name", ["official.npz", "tokenizer/official.npz"])
def test_a_source_in_the_destination_is_never_deleted(name, tmp_path):
    folder = convert(write_npz(tmp_path / "x.npz", tiny_arrays()), tmp_path / "model")
    source = write_npz(folder / name, tiny_arrays())
    before = content(folder)
    with pytest.raises(CheckpointError, match=r"official.npz is inside .*model and would be deleted with it"):
        convert(source, folder, "--overwrite")
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    with pytest.raises(CheckpointError, match="would be deleted with it"):
        convert(source, linked, "--overwrite")
    assert content(folder) == before


def test_an_export_replaces_an_export_of_ours_and_no_other_folder(model, tmp_path):
    target = tmp_path / "hub"
    open_clip(["export", str(model), str(target)])
    open_clip(["export", str(model), str(target), "--overwrite"])
    before = content(target)
    (target / ".git").mkdir()
    with pytest.raises(CheckpointError, match=r"it is a folder that was exported here that also holds \.git"):
        open_clip(["export", str(model), str(target), "--overwrite"])
    (target / ".git").rmdir()
    weights = target / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b'"writer"', b'"author"'))  # like a download
    with pytest.raises(CheckpointError, match="is not a folder that was exported here"):
        open_clip(["export", str(model), str(target), "--overwrite"])
    assert content(target).keys() == before.keys()
    for inside in (model, model / "hub"):
        with pytest.raises(CheckpointError, match=r"would be deleted with it|would be inside the source"):
            open_clip(["export", str(model), str(inside), "--overwrite"])


def test_the_archive_that_a_link_points_to_is_replaced_and_the_link_stays(model, tmp_path, dead):
    flax(["export", str(model), str(tmp_path / "a.npz")])
    (tmp_path / "link.npz").symlink_to("a.npz")
    (tmp_path / f".a.npz.new-{dead}").write_text("half")
    (tmp_path / f".a.npz.work-{dead}").mkdir()
    os.utime(tmp_path / "a.npz", (0, 0))
    flax(["export", str(model), str(tmp_path / "link.npz"), "--overwrite"])
    assert (tmp_path / "link.npz").is_symlink()
    assert (tmp_path / "a.npz").stat().st_mtime > 0
    assert {path.name for path in tmp_path.iterdir()} == {"model", "a.npz", "link.npz"}
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ConversionError, match="is not a regular file"):
        flax(["export", str(model), str(tmp_path / "pipe.npz"), "--overwrite"])


def test_leftovers_of_a_killed_command_are_removed_by_the_next(model, dead):
    parent = model.parent
    for name in (f".model.new-{dead}", f".model.old-{dead}", f".model.old-{os.getpid()}"):
        (parent / name).mkdir()
        (parent / name / "model.safetensors").write_text("half")
    kept = [f".model.new-{os.getppid()}", f".other.new-{dead}", f".model.new-{dead}x", ".model.new-0123456789012"]
    for name in kept:
        (parent / name).mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        save(model)
    assert {path.name for path in parent.iterdir()} == {"model", *kept}


def test_a_model_that_a_killed_command_had_moved_aside_is_restored(model, dead):
    before = content(model)
    model.rename(model.with_name(f".model.old-{dead}"))
    (model.with_name(f".model.new-{dead}")).mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        save(model, 1)
    assert content(model) == before
    model.rename(model.with_name(f".model.old-{dead}"))
    save(model, 1, overwrite=True)
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_the_folder_that_this_process_writes_is_not_a_leftover(tmp_path):
    with new_folder(tmp_path / "model", MODEL_FOLDER, overwrite=False) as new:
        remove_leftovers(tmp_path / "model")
        assert new == temporary_path(tmp_path / "model", "new")
        assert new.is_dir()


def test_sigterm_leaves_nothing_behind(tmp_path):
    arrays = tiny_arrays() | {"params/txt/Embed_0/embedding": np.ones((1_000_000, 32), np.float32)}
    source = write_npz(tmp_path / "x.npz", arrays)
    flags = "--image-pool gap --text-pool last --image-position sincos2d --image-size 16".split()  # noqa: SIM905
    command = [sys.executable, "-m", "conversion.flax_clipa", "import", str(source), str(tmp_path / "out" / "model")]
    with subprocess.Popen([*command, *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while not any(tmp_path.glob("out/.model.new-*")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "terminated; nothing was written" in said
    assert list((tmp_path / "out").iterdir()) == []
