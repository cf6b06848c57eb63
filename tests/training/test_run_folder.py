"""Ownership of run folders: every field that changes a number is compared, damage is named, nothing is lost."""

import dataclasses
import json
from pathlib import Path

import pytest
from support.tiny_models import tiny_run

from clipa_eqx.data.manifest import Manifest
from clipa_eqx.data.shards import ShardInfo
from clipa_eqx.errors import CheckpointError
from clipa_eqx.json_config import to_json
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.surgery.operations import Lora, PruneDepth
from clipa_eqx.training.run_folder import check_same_run, claim, data_identity, read_record, run_record


def record(**fields):
    return run_record(tiny_run(**fields), [], vocab_sha256="v")


def edited(path, value):
    """The record with another value at a path of its config."""
    made = json.loads(json.dumps(record()))
    *outer, last = path.split("/")
    inner = made["config"]
    for name in outer:
        inner = inner[int(name) if isinstance(inner, list) else name]
    inner[int(last) if isinstance(inner, list) else last] = value
    return made


def leaves(value, path=""):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return [path]
    return [leaf for name, one in items for leaf in leaves(one, f"{path}/{name}" if path else str(name))]


LORA = Lora(rank=1, alpha=1.0, targets=(".*/q/weight",))
FREE = {
    "mesh", "log_every_steps", "checkpoint", "wandb", "tensorboard", "zero_shot", "eval_image",
    "data/vocab", "data/on_bad_record", "data/stream", "data/sources/0/folder",
    "loss/algorithm", "loss/chunk", "micro_batch", "attention", "ema", "guard", "on_non_finite",
    "watchdog", "flight_steps",
}  # fmt: skip
FIELDS = leaves(json.loads(json.dumps(to_json(tiny_run()))))


def is_free(path):
    return any(path == free or path.startswith(f"{free}/") for free in FREE)


@pytest.mark.parametrize(
    ("operations", "flag"), [((PruneDepth(text=(0,)), LORA), " --init.surgery none"), ((LORA,), "")]
)
def test_the_advised_new_run_does_not_repeat_the_surgery(operations, flag):
    config = tiny_run(init=InitConfig(source="runs/first", surgery=operations), trainable=(".*",))
    ours, theirs = (
        json.loads(json.dumps({**record(), "config": to_json(dataclasses.replace(config, seed=seed))}))
        for seed in (1, 2)
    )
    with pytest.raises(CheckpointError, match=rf"--init-from 'a run'{flag} to start"):
        check_same_run(ours, theirs, where="here", workdir=Path("a run"))


def test_the_fields_of_a_config_are_of_both_kinds():
    assert {is_free(path) for path in FIELDS} == {True, False}
    assert all(any(path == free or path.startswith(f"{free}/") for path in FIELDS) for free in FREE - {"zero_shot"})


@pytest.mark.parametrize("path", [path for path in FIELDS if is_free(path)])
def test_a_field_that_changes_no_number_may_differ(path):
    check_same_run(record(), edited(path, "other"), where="here", workdir=Path("a run"))


@pytest.mark.parametrize("former", ["global", "sharded"])
def test_a_run_of_version_0_1_0_resumes_with_any_algorithm_of_its_loss(former):
    ours = edited("loss", former)
    del ours["config"]["model"]["bias"]
    check_same_run(ours, edited("loss/algorithm", "ring"), where="here", workdir=Path("a run"))
    with pytest.raises(CheckpointError, match="loss/kind: softmax there, sigmoid now"):
        check_same_run(ours, edited("loss/kind", "sigmoid"), where="here", workdir=Path("a run"))


@pytest.mark.parametrize("path", [path for path in FIELDS if not is_free(path)])
def test_a_field_that_may_change_a_number_may_not_differ(path):
    with pytest.raises(CheckpointError, match=r"here is of another run.*1 problem:") as caught:
        check_same_run(record(), edited(path, "other"), where="here", workdir=Path("a run"))
    assert f"\n  {path}: " in str(caught.value)
    assert str(caught.value).endswith(" there, other now")


def test_all_differences_and_both_hashes_are_in_one_message():
    theirs = record(seed=5, batch_size=16) | {"data_sha256": "d", "vocab_sha256": "w"}
    with pytest.raises(CheckpointError) as caught:
        check_same_run(record(), theirs, where="here", workdir=Path("a run"))
    lines = str(caught.value).split("4 problems:\n  ")[1].split("\n  ")
    assert [line.split(":")[0] for line in lines] == ["batch_size", "seed", "the data's hash", "the vocabulary's hash"]
    assert lines[0] == "batch_size: 8 there, 16 now"


def test_a_field_that_only_one_of_them_has_is_absent_in_the_other():
    theirs = json.loads(json.dumps(record()))
    theirs["config"]["optim"]["lookahead"] = 3
    with pytest.raises(CheckpointError, match="optim/lookahead: absent there, 3 now"):
        check_same_run(record(), theirs, where="here", workdir=Path("a run"))


def test_a_record_survives_its_file(tmp_path):
    claim(tmp_path / "a" / "b", record())
    found = read_record(tmp_path / "a" / "b")
    assert found == json.loads(json.dumps(record()))
    check_same_run(found, record(), where="here", workdir=Path("a run"))


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("config.json", '{"schema": 1, "model": {}}', "model folder"),
        ("manifest.json", '{"shards": []}', "record folder"),
    ],
)
def test_a_folder_of_another_kind_is_named_and_kept(name, text, kind, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=rf"{tmp_path} is a {kind}; give a new folder with --workdir$"):
        claim(tmp_path, record())
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, text)]


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null", '{"version": 1}', '{"config": {}, "version": 1}'])
def test_a_text_that_is_no_record_is_named_and_kept(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    for use in (read_record, lambda folder: claim(folder, record())):
        with pytest.raises(CheckpointError, match=r"config\.json is not the record of a run"):
            use(tmp_path)
    assert (tmp_path / "config.json").read_text() == text


RESULTS = {
    "a log": lambda folder: (folder / "metrics.jsonl").write_text('{"step": 1}\n'),
    "a checkpoint": lambda folder: (folder / "checkpoints" / "5").mkdir(parents=True),
    "a model": lambda folder: (folder / "model").mkdir(),
}
NO_RESULTS = {
    "nothing": lambda folder: None,
    "an empty log": lambda folder: (folder / "metrics.jsonl").touch(),
    "no checkpoint": lambda folder: (folder / "checkpoints").mkdir(),
}


@pytest.mark.parametrize("case", RESULTS)
def test_a_run_with_results_keeps_its_folder(case, tmp_path):
    claim(tmp_path, record())
    RESULTS[case](tmp_path)
    claim(tmp_path, record())
    with pytest.raises(CheckpointError, match=r"seed: 0 there, 7 now"):
        claim(tmp_path, record(seed=7))
    assert read_record(tmp_path)["config"]["seed"] == 0


@pytest.mark.parametrize("case", NO_RESULTS)
def test_a_run_without_results_gives_up_its_folder(case, tmp_path):
    claim(tmp_path, record())
    NO_RESULTS[case](tmp_path)
    claim(tmp_path, record(seed=7))
    assert read_record(tmp_path)["config"]["seed"] == 7


def test_a_file_and_a_folder_of_something_else_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file; give a new folder with --workdir"):
        claim(tmp_path / "file", record())
    with pytest.raises(CheckpointError, match=r"is not empty and has no config\.json"):
        claim(tmp_path, record())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def manifest(*hashes):
    shards = tuple(ShardInfo(name=str(i), count=0, bytes=0, sha256=one) for i, one in enumerate(hashes))
    return Manifest(shards=shards, rows_read=0, rows_written=0)


def test_the_identity_of_data_knows_shards_sources_and_their_order():
    identities = [
        data_identity(one)
        for one in (
            [],
            [manifest("a"), manifest("b")],
            [manifest("b"), manifest("a")],
            [manifest("a", "b")],
            [manifest("b", "a")],
            [manifest("a", "b"), manifest()],
        )
    ]
    assert len(set(identities)) == len(identities)
    assert data_identity([manifest("a", "b")]) == identities[3]
