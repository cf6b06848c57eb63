"""A damaged checkpoint is restored bit by bit or reported by name, and the run takes the newest valid one."""

import itertools
import json
import logging
import shutil

import jax
import numpy as np
import pytest
from support import tiny_runs
from support.leaves import as_numpy, assert_bit_equal
from support.tiny_models import tiny_clip_config

from clipa_eqx.errors import CheckpointError, DamageError
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.programs.describe import describe_run
from clipa_eqx.programs.scored import load_scored
from clipa_eqx.saved.kinds import kind_of
from clipa_eqx.saved.model import load_model
from clipa_eqx.sharding import MeshConfig, make_mesh
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.restoring import read_newest
from clipa_eqx.training.run_folder import read_record
from clipa_eqx.training.start import load_source
from conversion.flax_clipa.unpack_run import unpack_run

pytestmark = pytest.mark.usefixtures("quick_compile")

RNG = np.random.default_rng(0)


def flipped(data):
    """The bytes with one other bit."""
    data, at = bytearray(data), int(RNG.integers(len(data)))
    data[at] ^= 1 << int(RNG.integers(8))
    return bytes(data)


DAMAGES = {
    "deleted": lambda data: None,
    "emptied": lambda data: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "a flipped bit": flipped,
    "another flipped bit": flipped,
    "garbage": lambda data: RNG.bytes(len(data)),
}


def damage(file, how):
    data = DAMAGES[how](file.read_bytes())
    if data is None:
        file.unlink()
    else:
        file.write_bytes(data)


def data_file(checkpoint, part):
    """The largest file of a part, which has the values."""
    return max((file for file in (checkpoint / part).rglob("d/*")), key=lambda file: file.stat().st_size)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never interrupted, with checkpoints 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    tiny_runs.train_on_one_device(tiny_runs.run_config(), folder)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def final(folder):
    made = tiny_runs.placed_state(tiny_runs.run_config(), devices=1)
    with Checkpoints(folder / "checkpoints", keep=None) as checkpoints:
        assert checkpoints.latest() == 12
        return checkpoints.restore(made.abstract, made.mesh, step=12)


def resume(folder):
    return tiny_runs.train_on_one_device(tiny_runs.run_config(), folder)


def warnings_of(caplog):
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING and one.name[:5] == "clipa"]


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_flipped_bit_makes_the_run_resume_from_the_checkpoint_before_and_end_as_if_nothing_was(
    part, run, whole, caplog
):
    caplog.set_level(logging.INFO)
    checkpoint = run / "checkpoints" / "12"
    damage(data_file(checkpoint, part), "a flipped bit")
    shutil.rmtree(run / "model")
    assert resume(run).steps == 12
    [warning] = warnings_of(caplog)
    assert warning.startswith(f"checkpoint {checkpoint} is damaged: ")
    assert warning.endswith(f"; it is now {run / 'damaged_checkpoints' / '12'}, which may be deleted")
    assert "resuming after step 8, from a checkpoint that was verified by its checksums" in caplog.messages
    assert_bit_equal(final(run), final(whole))
    assert [one["loss"] for one in read_metrics(run / "metrics.jsonl")] == [
        one["loss"] for one in read_metrics(whole / "metrics.jsonl")
    ]
    assert (run / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()
    # Once more: the step's name in damaged_checkpoints is taken.
    damage(data_file(checkpoint, part), "a flipped bit")
    resume(run)
    assert {one.name for one in (run / "damaged_checkpoints").iterdir()} == {"12", "12-2"}


def test_the_leaf_and_the_folder_are_named(run):
    made = tiny_runs.placed_state(tiny_runs.run_config(), devices=1)
    folder = run / "checkpoints" / "12"
    record = json.loads((folder / "record/metadata").read_text())
    assert record["checksums"].keys() == record["leaves"].keys() - {"step"}
    # Values in which no file format finds damage: those of another step.
    for part in ("model", "optimizer"):
        shutil.rmtree(folder / part)
        shutil.copytree(run / "checkpoints" / "8" / part, folder / part)
    with Checkpoints(run / "checkpoints", keep=None) as checkpoints:
        words = rf"checkpoint {folder} is damaged: model/image/patch/weight, .* more differ from the checksums"
        with pytest.raises(DamageError, match=words):
            checkpoints.restore(made.abstract, made.mesh, step=12)
        with pytest.raises(DamageError, match=r"model/image/patch/weight.* differ from the checksums"):
            checkpoints.restore_model(abstract_clip(made.state.model.config), made.mesh, step=12)
        with pytest.raises(DamageError, match=r"damaged: model/text/token/weight differ from the checksums"):
            checkpoints.read_leaf(12, "model/text/token/weight")
        # On 8 devices as on one.
        mesh = make_mesh(MeshConfig(fsdp=8), devices=jax.devices())
        with pytest.raises(DamageError, match=words):
            checkpoints.restore(made.abstract, mesh, step=12)
    with Checkpoints(run / "checkpoints", keep=None, checksums=False) as checkpoints:
        checkpoints.restore(made.abstract, made.mesh, step=12)  # switched off: nothing is compared
        assert checkpoints.known(12) == "was read without checksums"


def test_a_checkpoint_without_checksums_is_restored_and_not_called_verified(run, caplog):
    caplog.set_level(logging.INFO)
    for record in run.glob("checkpoints/*/record/metadata"):
        found = json.loads(record.read_text())
        record.write_text(json.dumps({name: found[name] for name in ("format", "leaves", "about")}))
    resume(run)
    assert "resuming after step 12, from a checkpoint that was read without checksums" in caplog.messages
    assert not warnings_of(caplog)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["about"]["config"].update(seed=1),
        lambda record: record["leaves"].pop("step"),
        lambda record: record["checksums"].update({"model/log_temperature": "0" * 16}),
        lambda record: record.pop("sha256"),
        lambda record: record.update(format=3),
        lambda record: record.update(step=8),
    ],
)
def test_a_changed_record_is_damage(change, run, caplog):
    path = run / "checkpoints/12/record/metadata"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    made = tiny_runs.placed_state(tiny_runs.run_config(), devices=1)
    with (
        Checkpoints(run / "checkpoints", keep=None) as checkpoints,
        pytest.raises(DamageError, match=r"checkpoints/12 is damaged: record/metadata has "),
    ):
        checkpoints.restore(made.abstract, made.mesh, step=12)


def test_a_checkpoint_under_the_name_of_another_step_is_damage(run):
    (run / "checkpoints/4").rename(run / "checkpoints/16")
    with (
        Checkpoints(run / "checkpoints", keep=None) as checkpoints,
        pytest.raises(DamageError, match=r"checkpoints/16 is damaged: it was saved as step 4"),
    ):
        checkpoints.record(16)


def test_if_all_are_damaged_one_error_lists_them_and_nothing_is_moved(run):
    for step, how in ((4, "deleted"), (8, "emptied"), (12, "a flipped bit")):
        damage(data_file(run / "checkpoints" / str(step), "model"), how)
    before = sorted(run.rglob("*"))
    with pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged.*move that folder away") as caught:
        resume(run)
    assert [line.strip().split(":")[0] for line in str(caught.value).splitlines()[1:]] == ["12", "8", "4"]
    assert sorted(run.rglob("*")) == before


def test_another_architecture_is_no_damage(run):
    other = tiny_runs.run_config(model=tiny_clip_config(text={"vocab": 80}))
    (run / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"is of another run") as caught:
        tiny_runs.train_on_one_device(other, run)
    assert not isinstance(caught.value, DamageError)
    assert not (run / "damaged_checkpoints").exists()


def test_readers_take_the_newest_valid_checkpoint_and_change_no_file(run, tmp_path, caplog):
    damage(data_file(run / "checkpoints/12", "model"), "a flipped bit")
    damage(run / "config.json", "cut in half")
    shutil.rmtree(run / "model")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    mesh = make_mesh(MeshConfig(), devices=tiny_runs.one_device())
    made = tiny_runs.placed_state(tiny_runs.run_config(), devices=1)
    with Checkpoints(run / "checkpoints", keep=None) as checkpoints:
        wanted = as_numpy(checkpoints.restore(made.abstract, made.mesh, step=8).model)
    scored = load_scored(run, mesh)
    assert scored.identity["step"] == 8
    assert_bit_equal(as_numpy(scored.model), wanted)
    assert_bit_equal(as_numpy(load_source(InitConfig(source=str(run)), mesh).model), wanted)
    (tmp_path / "scratch").mkdir()
    unpack_run(run, tmp_path / "scratch")
    assert sum(f"{run}/checkpoints/12 is damaged" in one for one in warnings_of(caplog)) == 3
    assert sum("step 8 is taken instead" in one for one in warnings_of(caplog)) == 3
    assert "saved steps: 4, 8, 12" in list(describe_run(run, None))
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_a_checkpoint_that_the_run_deletes_while_it_is_read_is_no_damage(run, caplog):
    """A run that trains and keeps one checkpoint commits the next one, and then deletes the one before."""
    folder = run / "checkpoints"
    (folder / "12").rename(run / "next")
    shutil.rmtree(folder / "4")

    def read(checkpoints, step):
        if step == 8:
            (run / "next").rename(folder / "12")
            shutil.rmtree(folder / "8")
        return checkpoints.record(step).folder.name

    assert read_newest(run, read) == (12, "12")
    assert not warnings_of(caplog)


@pytest.mark.parametrize(("how", "others"), [("cut in half", True), ("deleted", False)])
def test_a_lost_config_is_rebuilt_from_the_newest_valid_record(how, others, run, whole, caplog):
    for other in ("deleted", "emptied", "garbage", "cut in half"):
        (run / "config.json").write_bytes((whole / "config.json").read_bytes())
        damage(run / "config.json", other)
        assert read_record(run) == json.loads((whole / "config.json").read_text())
    caplog.clear()
    (run / "config.json").write_bytes((whole / "config.json").read_bytes())
    damage(run / "config.json", how)
    damage(run / "checkpoints/12/record/metadata", "cut in half")
    if not others:  # the checkpoints alone
        (run / "metrics.jsonl").unlink()
        shutil.rmtree(run / "model")
    assert kind_of(run) == "run folder"
    resume(run)
    warnings = warnings_of(caplog)
    assert any(one.startswith(f"{run / 'config.json'} is lost or damaged") for one in warnings)
    assert any(f"the record in {run / 'checkpoints/8'} is used" in one for one in warnings)
    assert (run / "config.json").read_bytes() == (whole / "config.json").read_bytes()
    assert_bit_equal(final(run), final(whole))


def test_a_log_that_is_shorter_than_its_checkpoint_is_reported(run, caplog):
    log = run / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:7]))
    resume(run)
    [warning] = warnings_of(caplog)
    assert f"{log} ends at step 7, but lines up to step 12 were written before checkpoint 12" in warning
    caplog.clear()
    log.write_bytes(b"\xff\xfe\n" + log.read_bytes())
    with pytest.raises(CheckpointError, match=r"metrics.jsonl line 1 is damaged"):
        resume(run)


def test_a_damaged_model_of_a_finished_run_is_written_again(run, whole):
    damage(run / "model/model.safetensors", "garbage")
    with pytest.raises(CheckpointError, match=rf"{run}/model"):
        load_scored(run, make_mesh(MeshConfig(), devices=tiny_runs.one_device()))
    resume(run)
    assert (run / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()
    assert load_model(run / "model").provenance.leaves_sha256


def test_a_step_that_exists_is_never_saved_again_and_the_newest_step_is_the_largest(tmp_path):
    made = tiny_runs.placed_state(tiny_runs.run_config(), devices=1)
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, keep=3) as first, Checkpoints(folder, keep=3) as second:
        first.save(made.state, step=5, about={})
        first.wait()
        before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for checkpoints, step in itertools.product((first, second), (5, 3)):
            with pytest.raises(CheckpointError, match=rf"checkpoints/{step} cannot be saved: this step or a later"):
                checkpoints.save(made.state, step=step, about={})
        assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
        shutil.copytree(folder / "5", folder / "2")  # as a forced save of an older step leaves it
        assert first.latest() == second.latest() == first.committed() == 5
        first.save(made.state, step=6, about={})
        assert first.committed() == 6


def checkpoint_files(folder):
    return sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGES)
def test_every_file_of_a_checkpoint_may_be_damaged(how, run, whole):
    """The state of the run is then bit by bit that of its last checkpoint, or the damage is reported and it resumes."""
    made = tiny_runs.placed_state(tiny_runs.run_config(), devices=1)
    checkpoint, outcomes = run / "checkpoints/12", []
    wanted = final(whole)
    kept = shutil.copytree(checkpoint, run.parent / "kept")
    for name in checkpoint_files(checkpoint):
        damage(checkpoint / name, how)
        with Checkpoints(run / "checkpoints", keep=None) as checkpoints:
            try:
                restored = checkpoints.restore(made.abstract, made.mesh, step=12)
            except DamageError as error:
                outcomes.append(str(error))
            else:
                assert_bit_equal(restored, wanted)
                outcomes.append(None)
        shutil.rmtree(checkpoint)
        shutil.copytree(kept, checkpoint)
    assert None in outcomes  # some files are not needed
    assert sum(one is not None for one in outcomes) >= 5
    assert all(one is None or (len(one) < 600 and "\n" not in one) for one in outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["model", "optimizer", "record", "."])
def test_every_folder_of_a_checkpoint_may_be_lost(part, run, whole):
    shutil.rmtree(run / "checkpoints/12" / part)
    (run / "checkpoints/12").mkdir(exist_ok=True)
    resume(run)
    assert_bit_equal(final(run), final(whole))


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGES)
def test_a_run_ends_as_the_whole_one_whichever_file_of_its_checkpoint_is_damaged(how, whole, tmp_path):
    for number, name in enumerate(checkpoint_files(whole / "checkpoints/12")):
        run = shutil.copytree(whole, tmp_path / f"run{number}")
        damage(run / "checkpoints/12" / name, how)
        resume(run)
        assert_bit_equal(final(run), final(whole))
        shutil.rmtree(run)
