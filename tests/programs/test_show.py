"""Output of `show`: what it prints and draws of a config, a model folder, a run folder and a record folder."""

import errno
import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from PIL import Image
from support.paths import ROOT
from support.tiny_models import tiny_clip, tiny_run, tiny_tokenizer

from clipa_eqx.cli import run
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.manifest import Manifest, write_manifest
from clipa_eqx.data.records import Record
from clipa_eqx.data.shards import ShardInfo
from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.json_config import to_json
from clipa_eqx.programs.show import main
from clipa_eqx.saved.model import save_model
from clipa_eqx.training.run_lock import run_lock

SCRIPT = ROOT / "scripts" / "show.py"
ALL = "parameters, all: "


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.py"
    path.write_text("from support.tiny_models import tiny_run\n\ndef config():\n    return tiny_run()\n")
    return path


def shown(capsys, *argv) -> str:
    main([str(arg) for arg in argv])
    return capsys.readouterr().out


def count(model) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(model))


def test_a_config_is_shown_resolved_with_its_parameters(config_file, capsys):
    out = shown(capsys, config_file, "--optim.peak-lr", "0.25")
    record, _ = json.JSONDecoder().raw_decode(out)
    assert record["optim"]["peak_lr"] == 0.25
    assert record["model"] == to_json(tiny_run().model)
    model = tiny_clip()
    assert f"{ALL}{count(model):,}" in out
    assert f"parameters, text: {count(model.text):,}" in out
    row = next(line for line in out.splitlines() if line.startswith("image/blocks/mlp/fc_in/weight"))
    assert row.split()[1:] == ["2x64x32", "4,096"]


def test_a_model_folder_is_shown_with_its_provenance(tmp_path, capsys):
    folder = tmp_path / "model"
    save_model(
        folder,
        tiny_clip(),
        tokenizer=tiny_tokenizer(),
        preprocess=tiny_run().eval_image,
        provenance={"source": "somewhere"},
    )
    out = shown(capsys, folder)
    assert "somewhere" in out
    assert f"{ALL}{count(tiny_clip()):,}" in out


def test_a_run_folder_is_shown_with_its_steps_and_last_metrics(tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    record = {"version": 1, "config": to_json(tiny_run()), "data_sha256": "0", "vocab_sha256": "0"}
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert "latest checkpoint: none yet" in shown(capsys, tmp_path)
    for name in ("9", "10", "11.orbax-checkpoint-tmp-1"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 3.5}\n{"step": 10, "loss": 2.5, "norm/blocks": [7.25]}\n'
    )
    out = shown(capsys, tmp_path)
    assert "saved steps: 9, 10\n" in out
    assert "latest checkpoint: 10\n" in out
    assert "loss: 2.5\n" in out
    assert "7.25" not in out
    assert "loss: 3.5" not in out


def test_a_record_folder_is_shown_by_its_manifest(tmp_path, capsys):
    """Without shards to draw from, the manifest is shown; only with ``--sheet`` is that an error."""
    shard = ShardInfo(name="a.arrayrecord", count=5, bytes=100, sha256="0" * 64)
    manifest = Manifest(
        shards=(shard,), rows_read=7, rows_written=5, rows_dropped={"no caption": 2}, class_names=("cat", "dog")
    )
    write_manifest(tmp_path, manifest)
    out = shown(capsys, tmp_path)
    assert "7 read, 5 written" in out
    assert "2 no caption" in out
    assert "class names: 2" in out
    assert re.search(r"^no sheet is drawn: .*a\.arrayrecord is missing", out, re.MULTILINE)
    with pytest.raises(DataError, match=r"a\.arrayrecord is missing"):
        main([str(tmp_path), "--sheet", str(tmp_path / "sheet.png")])


def test_a_record_folder_without_records_or_classes_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_records([], tmp_path / "none", class_names=())
    out = shown(capsys, "none")
    assert "class names: none" in out
    assert "no sheet is drawn: there are no records" in out
    assert [path.name for path in tmp_path.iterdir()] == ["none"]


def test_damaged_records_are_named_and_others_drawn(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    bad = (3, 17)
    write_records(
        (Record(key=f"k{i}", image=file.getvalue()[: 20 if i in bad else None], captions=("red",)) for i in range(40)),
        "set",
    )
    with caplog.at_level(logging.WARNING):
        assert "40 samples drawn to set-sheet.png" in shown(capsys, "set", "--samples", "40")
    for i in bad:
        assert sum(f"key 'k{i}'" in line for line in caplog.messages) == 1
    with Image.open("set-sheet.png") as sheet:
        assert sheet.format == "PNG"


def test_no_sheet_is_put_among_the_records_unless_it_is_named(tmp_path, monkeypatch, capsys):
    write_records((Record(key=str(i), image=b"") for i in range(2)), tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set")
    before = sorted(Path().iterdir())
    out = shown(capsys, ".")
    assert "2 read, 2 written" in out
    assert "no sheet is drawn: it would be written into the record folder; name a file with --sheet" in out
    assert sorted(Path().iterdir()) == before


def test_a_folder_that_cannot_be_written_has_no_sheet_and_is_no_mistake(tmp_path, monkeypatch, capsys):
    image = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(image, "PNG")
    write_records((Record(key=str(i), image=image.getvalue(), captions=("red",)) for i in range(40)), tmp_path / "set")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("clipa_eqx.programs.contact_sheet.new_file", refuse)
    out = shown(capsys, "../set")
    assert "40 read, 40 written" in out
    reason = "the sheet set-sheet.png cannot be written (Permission denied); name another file with --sheet"
    assert f"no sheet is drawn: {reason}\n" in out
    with pytest.raises(ConfigError, match=r"the sheet x.png cannot be written \(Permission denied\)"):
        main(["../set", "--sheet", "x.png"])


def test_a_sheet_of_a_model_or_run_is_refused(tmp_path):
    for name, text in (("model", '{"schema": 1, "model": {}}'), ("run", '{"data_sha256": "0"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
        with pytest.raises(ConfigError, match="--sheet draws samples of a record folder or of a config file"):
            main([str(tmp_path / name), "--sheet", "x.png"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nothing"], "nothing does not exist; expected a run folder"),
        (["nothing.py"], "does not exist"),
        (["run.py", "--mesh", "64x8"], "such as 64x8x1"),
        ([".", "--optim.peak-lr", "1"], "only a config file takes overrides"),
        ([".", "--evry", "3"], "only a config file takes overrides; did you mean --every?"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(lambda: main(argv)) == 2
    assert words in capsys.readouterr().err


def test_a_run_that_has_only_its_lock_yet_is_said_to_start(tmp_path, capsys):
    with run_lock(tmp_path / "run"):
        for more in ([], ["--every", "5"]):
            assert run(lambda more=more: main([str(tmp_path / "run"), *more])) == 2
            assert f"{tmp_path / 'run'}: a run starts there and has written nothing yet" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    assert run(lambda: main([str(tmp_path / "run")])) == 2
    assert "is a folder that clipa_eqx did not write" in capsys.readouterr().err


def test_a_mesh_that_does_not_divide_the_batch_is_refused(config_file, capsys):
    assert run(lambda: main([str(config_file), "--mesh", "3x1x1", "--batch-size", "16"])) == 2
    printed = capsys.readouterr()
    assert "batch_size 16 cannot be split evenly over 3 devices (mesh data=3 x fsdp=1)" in printed.err
    assert printed.out == ""


def test_the_script_shows_shardings_without_devices(config_file):
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT)))}
    command = [sys.executable, str(SCRIPT), str(config_file), "--mesh", "64x8x1", "--batch-size", "512"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=True)
    rows = {line.split()[0]: line.split()[3:] for line in done.stdout.splitlines() if line.startswith("image/")}
    assert rows["image/blocks/mlp/fc_in/weight"] == ["-,", "fsdp,", "-"]
    assert rows["image/class_token"] == ["whole"]
