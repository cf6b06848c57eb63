"""Mistakes of the user in a training run: one clear message, exit code 2, and no file overwritten."""

import functools
import json
import os
import shutil
import subprocess
import sys

import pytest
from support import tiny_runs
from support.paths import ROOT
from support.tiny_models import tiny_clip_config

from clipa_eqx.cli import run
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.shuffled_order import shuffled_order
from clipa_eqx.programs.train import main
from clipa_eqx.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = '''"""A tiny run."""
from support import tiny_runs
from support.tiny_models import tiny_clip_config


def config():
    return tiny_runs.run_config(model=tiny_clip_config(**tiny_runs.STOCHASTIC))
'''


@pytest.fixture
def train(tmp_path, capsys):
    """Call the command with flags; gives (exit code, error message)."""
    config = tmp_path / "run.py"
    config.write_text(CONFIG)

    def call(*flags, config=config):
        code = run(functools.partial(main, [str(config), *map(str, flags)]))
        errors = capsys.readouterr().err.split("error: ")[1:]
        assert len(errors) == (code == 2), errors
        return code, errors[0] if errors else ""

    return call


@pytest.fixture
def one_device(monkeypatch):
    """A machine with one device; the step is compiled once for all tests."""
    monkeypatch.setattr("clipa_eqx.programs.training_run.train", tiny_runs.train_on_one_device)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    tiny_runs.train_on_one_device(tiny_runs.run_config(model=tiny_clip_config(**tiny_runs.STOCHASTIC)), workdir)
    return workdir


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--optim.peak-rl", "1"], ["--optim.peak-rl"]),
        (["--optim.peak-lr", "fast"], ["--optim.peak-lr", "fast"]),
        (["--mesh.data", "4"], ["mesh data=4", "8 devices"]),
        (["--batch-size", "12"], ["batch_size 12", "multiple of 8"]),
        (["--data.sources.0.folder", "/nowhere/records"], ["/nowhere/records", "does not exist"]),
        (["--model.text.vocab", "60"], ["model.text.vocab is 60", "64 pieces", "at least 64"]),
        (["--model.image.blocks.heads", "5"], ["heads=5", "width=32"]),
        (["--data.vocab", "/nowhere/vocab.txt"], ["/nowhere/vocab.txt"]),
    ],
)
def test_mistakes_in_the_config_are_found_before_a_run_folder_is_made(train, tmp_path, flags, words):
    code, error = train("--workdir", tmp_path / "work", *flags)
    assert code == 2
    assert [word for word in words if word not in error] == [], error
    assert not (tmp_path / "work").exists()


def test_a_missing_run_folder_and_a_missing_config_file_are_reported(train, tmp_path):
    assert "--workdir is missing" in train()[1]
    code, error = train("--workdir", tmp_path / "work", config=tmp_path / "none.py")
    assert (code, "none.py" in error) == (2, True)


def test_the_script_as_a_process_reports_one_message_and_ends_with_2(tmp_path):
    config = tmp_path / "run.py"
    config.write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, "scripts/train.py", str(config), "--workdir", str(tmp_path / "work"), "--batch-sise", "4"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT)))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: command line: ")
    assert "--batch-sise" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_run_folder_of_another_run_is_refused_with_every_difference(train, finished, one_device):
    before = contents(finished)
    code, error = train("--workdir", finished, "--optim.peak-lr", "0.5", "--seed", "9", "--log-every-steps", "3")
    assert code == 2
    lines = [line.strip() for line in error.splitlines()[1:] if line.strip()]
    assert lines == ["optim/peak_lr: 0.001 there, 0.5 now", "seed: 0 there, 9 now"]
    assert contents(finished) == before


def test_other_data_under_the_same_name_is_another_run(train, finished, one_device, tmp_path):
    write_records(tiny_runs.make_records(30), tmp_path / "records")
    before = contents(finished)
    code, error = train("--workdir", finished, "--data.sources.0.folder", tmp_path / "records")
    assert (code, "the data's hash" in error) == (2, True)
    assert contents(finished) == before


def test_a_folder_that_is_no_run_is_left_alone(train, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "todo.txt").write_text("water the plants")
    code, error = train("--workdir", notes)
    assert (code, "is not empty and has no config.json" in error) == (2, True)
    code, error = train("--workdir", notes / "todo.txt")
    assert (code, "is a file" in error) == (2, True)
    assert contents(notes) == {notes / "todo.txt": b"water the plants"}


def test_a_model_folder_is_left_alone(train, finished):
    before = contents(finished)
    code, error = train("--workdir", finished / "model")
    assert code == 2
    assert f"{finished / 'model'} is a model folder; give a new folder with --workdir" in error
    assert contents(finished) == before


def test_a_foreign_config_json_is_left_alone(train, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"config": 1}')
    code, error = train("--workdir", foreign)
    assert (code, "is not the record of a run: it has no data_sha256, version, vocab_sha256" in error) == (2, True)
    assert contents(foreign) == {foreign / "config.json": b'{"config": 1}'}


def test_a_refused_start_leaves_no_folder_behind(train, tmp_path, one_device):
    work = tmp_path / "work"
    code, error = train("--workdir", work, "--init-from", tmp_path / "nowhere")
    assert (code, "nowhere does not exist; expected a run folder or a model folder" in error) == (2, True)
    assert not work.exists()
    assert train("--workdir", work)[0] == 0


def test_a_checkpoint_of_another_architecture_is_refused(train, finished, one_device, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    record = json.loads((work / "config.json").read_text())
    record["config"]["model"]["image"]["blocks"]["mlp_dim"] = 32
    (work / "config.json").write_text(json.dumps(record))
    before = contents(work / "checkpoints") | contents(work / "model")
    code, error = train("--workdir", work, "--model.image.blocks.mlp-dim", "32")
    assert code == 2
    assert "checkpoint 12" in error
    assert "model/image/blocks/mlp_dim: 64 there, 32 now" in error
    assert contents(work / "checkpoints") | contents(work / "model") == before


def test_a_damaged_metric_log_is_refused_and_kept(train, finished, one_device, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    log = work / "metrics.jsonl"
    log.write_text("no json\n" + log.read_text())
    before = log.read_bytes()
    code, error = train("--workdir", work)
    assert (code, "metrics.jsonl line 1 is damaged" in error) == (2, True)
    assert log.read_bytes() == before


def test_a_corrupt_record_ends_the_run_by_name_and_a_repaired_one_resumes_it(train, one_device, tmp_path):
    good = tmp_path / "good"
    bad = tmp_path / "bad"
    records = list(tiny_runs.make_records(tiny_runs.RECORDS))
    # The first sample of step 7 that was not in the steps before.
    order = [int(shuffled_order(tiny_runs.RECORDS, seed=0)[n]) for n in range(112)]
    broken = order[96]
    assert broken not in order[:96]
    write_records(records, good)
    shutil.copytree(good, bad)
    shard = next(bad.glob("*.array_record"))
    # Overwrite the image's end with zeros; file size, manifest and index stay.
    data, image = shard.read_bytes(), records[broken].image
    assert data.count(image) == 1
    shard.write_bytes(data.replace(image, image[:40] + bytes(len(image) - 40)))
    work = tmp_path / "work"
    code, error = train("--workdir", work, "--data.sources.0.folder", bad)
    assert code == 2
    assert f"record {broken}" in error
    assert [line["step"] for line in read_metrics(work / "metrics.jsonl")][-1] in (4, 5, 6)
    assert not (work / "model").exists()
    assert train("--workdir", work, "--data.sources.0.folder", good)[0] == 0
    assert [line["step"] for line in read_metrics(work / "metrics.jsonl")] == list(range(1, 13))
