"""The kind of a folder: one decision, also for damaged folders, and one statement of it by everything that asks."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.tiny_models import tiny_clip, tiny_tokenizer

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.manifest import Manifest, write_manifest
from clipa_eqx.errors import CheckpointError, ClipaError
from clipa_eqx.programs.scored import load_scored
from clipa_eqx.programs.targets import show
from clipa_eqx.saved.adapters import load_adapters
from clipa_eqx.saved.description import load_model_config
from clipa_eqx.saved.kinds import expect_kind, kind_of, what_is
from clipa_eqx.saved.model import save_model
from clipa_eqx.sharding import MeshConfig, make_mesh
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.training.run_folder import check_kind
from clipa_eqx.training.start import load_source
from conversion.compare.opening import open_side
from conversion.flax_clipa.exporting import export_flax
from conversion.open_clip.sources import find_source
from conversion.weights.choices import Choices

RECORD = {"version": 1, "config": {}, "data_sha256": "0", "vocab_sha256": "0"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    parts = {"tokenizer": tiny_tokenizer(), "preprocess": EvalImageConfig(size=(16, 16)), "provenance": {}}
    return save_model(tmp_path_factory.mktemp("kinds") / "model", tiny_clip(), **parts)


def run_folder(at, _):
    """A run that was stopped: its record, a checkpoint and metrics."""
    (at / "checkpoints" / "3").mkdir(parents=True)
    (at / "metrics.jsonl").write_text('{"step": 1}\n')
    (at / "config.json").write_text(json.dumps(RECORD))


def finished_run(at, saved):
    run_folder(at, saved)
    shutil.copytree(saved, at / "model")


def model_folder(at, saved):
    shutil.copytree(saved, at, dirs_exist_ok=True)


def adapters(at, _):
    (at / "adapters.json").write_text('{"schema": 1, "alpha": 8.0, "base": {}}')
    (at / "adapters.safetensors").write_text("")


def record_folder(at, _):
    write_manifest(at, Manifest(shards=(), rows_read=0, rows_written=0))


def hugging_face(at, _):
    (at / "config.json").write_text('{"hidden_size": 3}')
    (at / "model.safetensors").write_text("")
    (at / "tokenizer").mkdir()


def open_clip_training(at, _):
    (at / "checkpoints").mkdir()
    (at / "params.txt").write_text("")


def nothing(at, _):
    pass


DAMAGED = ["", "{", "[]", '"text"', "[" * 100_000, "\x00"]

# How a folder is made, what then happens to which of its files (None: it is removed), and what it is.
FOLDERS = [
    (nothing, {}, "other folder"),
    (hugging_face, {}, "other folder"),
    (open_clip_training, {}, "other folder"),
    (run_folder, {}, "run folder"),
    (run_folder, {"checkpoints": None, "metrics.jsonl": None}, "run folder"),
    (run_folder, {"config.json": None}, "run folder"),
    *((run_folder, {"config.json": text, "metrics.jsonl": None}, "run folder") for text in DAMAGED),
    *((run_folder, {"config.json": text, "checkpoints": None}, "run folder") for text in DAMAGED),
    (run_folder, {"config.json": "{}", "metrics.jsonl": None}, "other folder"),
    (run_folder, {"config.json": None, "metrics.jsonl": None}, "other folder"),
    (finished_run, {}, "run folder"),
    (finished_run, {"config.json": "{", "metrics.jsonl": None, "checkpoints": None}, "run folder"),
    (model_folder, {}, "model folder"),
    (model_folder, {"model.safetensors": None}, "model folder"),
    (model_folder, {"preprocess.json": None, "provenance.json": None, "tokenizer": None}, "model folder"),
    (model_folder, {"config.json": '{"schema": 2, "model": {}}'}, "model folder"),
    *((model_folder, {"config.json": text}, "model folder") for text in (None, "{}", *DAMAGED)),
    (model_folder, {"config.json": None, "preprocess.json": None, "provenance.json": None}, "other folder"),
    (adapters, {}, "folder of adapters"),
    (adapters, {"adapters.safetensors": None}, "folder of adapters"),
    *((adapters, {"adapters.json": text}, "folder of adapters") for text in DAMAGED),
    (adapters, {"adapters.json": None}, "other folder"),
    (adapters, {"adapters.json": '{"alpha": 1}', "adapters.safetensors": None}, "other folder"),
    (record_folder, {}, "record folder"),
    *((record_folder, {"manifest.json": text}, "record folder") for text in DAMAGED),
    (record_folder, {"manifest.json": '{"name": "an extension of a browser"}'}, "other folder"),
]


def change(folder: Path, files):
    for name, text in files.items():
        if text is not None:
            (folder / name).write_text(text)
        elif (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink()


@pytest.mark.parametrize(("make", "files", "kind"), FOLDERS)
def test_the_kind_of_a_folder(make, files, kind, saved, tmp_path):
    make(tmp_path, saved)
    change(tmp_path, files)
    assert kind_of(tmp_path) == kind
    assert kind_of(str(tmp_path)) == kind


def test_files_links_and_names_of_nothing(saved, tmp_path):
    assert kind_of(tmp_path / "nothing") == "missing"
    (tmp_path / "broken").symlink_to("nothing")
    assert kind_of(tmp_path / "broken") == "missing"
    assert kind_of(saved / "config.json") == "file"
    (tmp_path / "link").symlink_to(saved)
    assert kind_of(tmp_path / "link") == "model folder"


def test_an_unexpected_kind_is_an_error_that_says_what_was_expected(saved):
    assert expect_kind(saved, "model folder", "run folder") == "model folder"
    with pytest.raises(CheckpointError) as caught:
        expect_kind(saved, "run folder", "record folder", where="a.b", other="a file")
    assert str(caught.value) == f"a.b: {saved} is a model folder; expected a run folder, a record folder or a file"


def call_show(path):
    show(path, (), program="show", sheet=None, samples=1, mesh=None)


def call_open_side(path):
    with ExitStack() as stack:
        open_side(str(path), Choices(), stack)


# All places that ask, and which kinds each accepts or reports by a message of its own.
ASK = {
    "init.source": (
        lambda path: load_source(InitConfig(source=str(path)), make_mesh(MeshConfig())),
        {"run folder", "model folder"},
    ),
    "evaluate": (lambda path: load_scored(path, make_mesh(MeshConfig())), {"run folder", "model folder"}),
    "show": (call_show, {"run folder", "model folder", "record folder"}),
    "export to Flax": (lambda path: export_flax(path, path.parent / "x.npz"), {"run folder", "model folder"}),
    "compare": (call_open_side, {"model folder", "other folder", "missing"}),
    "import from open_clip": (lambda path: find_source(str(path)), {"other folder", "missing"}),
    "load_model_config": (load_model_config, {"model folder"}),
    "load_adapters": (lambda path: load_adapters(path, base=None), {"folder of adapters"}),
    "a new run": (check_kind, {"run folder", "other folder", "missing"}),
}
MAKE = {
    "run folder": run_folder,
    "model folder": model_folder,
    "record folder": record_folder,
    "folder of adapters": adapters,
    "other folder": hugging_face,
    "missing": lambda at, _: at.rmdir(),
}
CASES = [(asker, kind) for asker, (_, accepted) in ASK.items() for kind in MAKE if kind not in accepted]


@pytest.mark.parametrize(("asker", "kind"), CASES)
def test_all_who_ask_give_the_same_statement(asker, kind, saved, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    MAKE[kind](folder, saved)
    with pytest.raises(ClipaError) as caught:
        ASK[asker][0](folder)
    assert what_is(folder) in str(caught.value)


def test_a_run_folder_with_a_damaged_record_is_still_one_for_those_who_take_runs(saved, tmp_path):
    run_folder(tmp_path, saved)
    (tmp_path / "config.json").write_text("{")
    for asker in ("init.source", "evaluate", "show", "export to Flax"):
        with pytest.raises(CheckpointError, match=r"config.json is not the record of a run"):
            ASK[asker][0](tmp_path)


def test_each_statement_names_the_path(saved, tmp_path):
    run_folder(tmp_path, saved)
    assert (
        what_is(tmp_path) == f"{tmp_path} is a run folder; its model is {tmp_path / 'model'}, written when the run ends"
    )
    assert what_is(saved) == f"{saved} is a model folder"
    assert what_is(saved / "config.json") == f"{saved / 'config.json'} is a file"
