"""Disks that fill: the run ends with one message that says what to do, and resumes once there is space again.

A limit on the size of files makes real writes fail in the middle, at a moment that a test chooses.
"""

import contextlib
import resource
import shutil
import time
from collections import namedtuple
from unittest import mock

import orbax.checkpoint as ocp
import pytest
from support import tiny_runs, train_processes
from support.tiny_models import tiny_clip_config
from support.train_processes import assert_same_runs, write_config

from clipa_eqx.errors import CheckpointError
from clipa_eqx.experiment import CheckpointConfig
from clipa_eqx.training import loop, run_folder, space
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.checkpoint_record import committed_steps
from clipa_eqx.training.flight import FLIGHT_NAME
from clipa_eqx.training.metrics import MetricLog, read_metrics
from clipa_eqx.training.space import check_space, explained, tree_bytes

pytestmark = pytest.mark.usefixtures("quick_compile")

STEPS = 12
# Room for metrics and metadata, not for the arrays of a model.
SMALL = 60_000


def config_of_run():
    return tiny_runs.run_config(model=tiny_clip_config(**tiny_runs.STOCHASTIC))


@contextlib.contextmanager
def limits_restored():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill_disk(*, room):
    """From now on no file of this process grows beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def failure(workdir, *, compiler=tiny_runs.compile_once):
    """The message of a run that fails."""
    with limits_restored(), pytest.raises(CheckpointError) as caught:
        tiny_runs.train_on_one_device(config_of_run(), workdir, compiler=compiler)
    return str(caught.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    tiny_runs.train_on_one_device(config_of_run(), workdir)
    return workdir


def assert_completes(workdir, whole):
    """The same command completes the run, and nothing of the failure is left."""
    tiny_runs.train_on_one_device(config_of_run(), workdir)
    assert_same_runs(workdir, whole, steps=STEPS)
    assert_same_files(workdir, whole)


def assert_same_files(workdir, whole):
    names = [
        sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.parent.name != FLIGHT_NAME)
        for folder in (workdir, whole)
    ]
    assert names[0] == names[1]
    left = {path.name for path in workdir.iterdir()} - {FLIGHT_NAME}
    assert left == {path.name for path in whole.iterdir()}


FULL = f"""
import resource
import time

save, finish_step = Checkpoints.save, Reports.finish


def fill_and_save(self, state, *, step, about):
    if str(step) == os.environ.get("FULL_AT"):
        resource.setrlimit(resource.RLIMIT_FSIZE, ({SMALL}, resource.RLIM_INFINITY))
    save(self, state, step=step, about=about)


def slowly(self, numbers, **rest):
    if "FULL_AT" in os.environ and numbers.step > int(os.environ["FULL_AT"]):
        time.sleep(1.0)  # the save fails in the meantime
    finish_step(self, numbers, **rest)


Checkpoints.save, Reports.finish = fill_and_save, slowly
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """The config of runs in processes of their own, and one that nothing happened to.

    A failed save leaves threads and messages of libraries behind, which end with the process.
    """
    folder = tmp_path_factory.mktemp("processes")
    config = write_config(folder / "run.py", steps=STEPS, before=FULL, keep=1)
    ended(train_processes.start(config, folder / "whole", log=folder / "log"), code=0, log=folder / "log")
    return config, folder / "whole"


def ended(process, *, code, log):
    """The output of a process that ends with an exit code."""
    try:
        assert process.wait(timeout=300) == code, log.read_text()
    finally:
        process.kill()
    return log.read_text()


def fail_and_complete(config, whole, folder, *, step, good):
    run, log = folder / "run", folder / "log"
    shown = ended(train_processes.start(config, run, log=log, FULL_AT=str(step)), code=2, log=log)
    assert "Traceback" not in shown
    (message,) = [line for line in shown.splitlines() if "error" in line.lower()]
    size = tree_bytes(tiny_runs.optimizer_and_state(config_of_run())[1]) / 2**10
    assert f"error: checkpoint {step} could not be written to {run}/checkpoints: File too large; " in message
    assert f"{size:.1f} KiB are needed, and the file system of {run}/checkpoints has " in message
    assert message.endswith(f"{good} Free space there (or raise the quota) and run the same command again")
    assert max(line["step"] for line in read_metrics(run / "metrics.jsonl")) < step + 4  # before the next save
    saved = [path.name for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved == ([str(step - 4)] if step > 4 else [])
    ended(train_processes.start(config, run, log=log), code=0, log=log)
    assert_same_runs(run, whole, steps=STEPS)
    assert_same_files(run, whole)


@pytest.mark.slow
def test_a_save_that_fails_in_the_background_ends_the_run_at_once_and_keeps_the_one_before(processes, tmp_path):
    fail_and_complete(*processes, tmp_path, step=8, good="The last saved step is 4.")


@pytest.mark.slow
def test_a_first_save_that_fails_in_the_background_ends_the_run_at_once(processes, tmp_path):
    fail_and_complete(*processes, tmp_path, step=4, good="No step of this run is saved.")


def test_a_failed_save_is_reported_by_the_check_after_a_step_and_not_before_it_is_over(tmp_path):
    made = tiny_runs.placed_state(tiny_runs.run_config(), devices=1)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.check()  # nothing was saved
    checkpoints.save(made.state, step=3, about={})
    full = OSError(28, "No space left on device")
    with mock.patch.object(ocp.CheckpointManager, "wait_until_finished", side_effect=full):
        with mock.patch.object(ocp.CheckpointManager, "is_saving_in_progress", return_value=True):
            checkpoints.check()
        with (
            mock.patch.object(ocp.CheckpointManager, "is_saving_in_progress", return_value=False),
            pytest.raises(CheckpointError, match=r"checkpoint 3 could not be written .* No space left on device"),
        ):
            checkpoints.check()
    with pytest.raises(CheckpointError, match="checkpoint 3 could not be written"):
        checkpoints.close()


def test_a_failed_save_does_not_hide_the_error_that_ended_the_run(tmp_path, caplog):
    made = tiny_runs.placed_state(tiny_runs.run_config(), devices=1)
    full = OSError(28, "No space left on device")
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(made.state, step=3, about={})
    with mock.patch.object(ocp.CheckpointManager, "wait_until_finished", side_effect=full):
        with contextlib.suppress(ZeroDivisionError), checkpoints:
            raise ZeroDivisionError
        with pytest.raises(CheckpointError, match=r"checkpoint 3 could not be written .* No space left on device"):
            checkpoints.close()
    assert "checkpoint 3 could not be written" in caplog.records[-1].getMessage()


def test_a_disk_that_fills_while_the_model_is_written_loses_nothing(whole, tmp_path):
    run, save = tmp_path / "run", loop.save_model

    def fill_and_save(*args, **rest):
        fill_disk(room=SMALL)
        return save(*args, **rest)

    with mock.patch.object(loop, "save_model", fill_and_save):
        message = failure(run)
    assert message.startswith(f"the model at the end, {run}/model, cannot be written: File too large; ")
    assert "Checkpoint 12 holds the last step. Free space there" in message
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "config.json",
        "flight",
        "metrics.jsonl",
        "report.html",
    ]
    assert_completes(run, whole)


def test_a_disk_that_fills_while_metrics_are_written_leaves_complete_lines(whole, tmp_path):
    run, write = tmp_path / "run", MetricLog.write

    def fill_and_write(self, step, values):
        if step == 6:
            while 4 not in committed_steps(run / "checkpoints"):  # its save runs in the background
                time.sleep(0.01)
            fill_disk(room=self.path.stat().st_size + 100)  # a part of the line fits
        write(self, step, values)

    with mock.patch.object(MetricLog, "write", fill_and_write):
        message = failure(run)
    assert message.startswith(f"step 6 cannot be written to {run}/metrics.jsonl: File too large; ")
    assert (run / "metrics.jsonl").read_text().endswith("}\n")
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert_completes(run, whole)


@pytest.mark.parametrize("room", [10, 1000], ids=["no lock", "a lock and no record"])
def test_a_disk_that_is_full_at_the_start_leaves_no_folder(room, tmp_path):
    with mock.patch.object(loop, "locked_on_all", wraps=loop.locked_on_all) as claimed:
        claimed.side_effect = lambda *args, **rest: (fill_disk(room=room), mock.DEFAULT)[1]
        message = failure(tmp_path / "new" / "run")
    assert message.startswith(f"run folder {tmp_path}/new/run cannot be written: File too large; ")
    assert list(tmp_path.iterdir()) == []


Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch):
    """Sets the free space that the system reports, in units of one checkpoint of the tiny run."""
    abstract = tiny_runs.optimizer_and_state(config_of_run())[1]
    one = tree_bytes(abstract) + space._SMALL_FILES
    return lambda count: monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, int(count * one)))


@pytest.fixture
def abstract():
    return tiny_runs.optimizer_and_state(config_of_run())[1]


def test_a_run_without_space_for_a_checkpoint_and_the_model_is_refused_before_it_compiles(free, tmp_path):
    free(1.5)
    message = failure(tmp_path / "run", compiler=lambda *args: pytest.fail("compiled"))
    assert message.startswith(
        f"the file system of run folder {tmp_path}/run has 6.8 MiB free, but the next checkpoint "
    )
    assert "takes 4.5 MiB and the model at the end 4.2 MiB; free 1.9 MiB more, or give a --workdir on" in message
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_last_checkpoints_do_not_fit_is_warned_once(free, abstract, tmp_path, caplog):
    config = CheckpointConfig(every_steps=4)
    free(3)
    check_space(tmp_path, abstract, config=config, total_steps=40)
    (warning,) = caplog.records
    assert "takes up to 22.2 MiB more: 4 checkpoints of 4.5 MiB" in warning.getMessage()
    assert "(those that checkpoint.keep keep, and" in warning.getMessage()
    caplog.clear()
    free(5)
    check_space(tmp_path, abstract, config=config, total_steps=40)
    free(4)
    check_space(tmp_path, abstract, config=config, total_steps=12)  # the run has three saves only
    assert not caplog.records


@pytest.mark.parametrize(
    ("more", "count"),
    [({"keep_every_steps": 8}, 7), ({"keep_best": "a"}, 5), ({"keep_every_steps": 8, "keep_best": "a"}, 9)],
)
def test_checkpoints_that_are_kept_longer_need_space_too(free, abstract, tmp_path, caplog, more, count):
    config = CheckpointConfig(every_steps=4, **more)
    free(count + 1)
    check_space(tmp_path, abstract, config=config, total_steps=40)
    assert not caplog.records
    free(count + 0.5)
    check_space(tmp_path, abstract, config=config, total_steps=40)
    (warning,) = caplog.records
    assert f"more: {count} checkpoints" in warning.getMessage()
    assert all(f"checkpoint.{name}" in warning.getMessage() for name in more)


def test_checkpoints_that_are_there_already_need_no_space(free, abstract, tmp_path, caplog):
    for step in (4, 8):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    free(3)
    check_space(tmp_path, abstract, config=CheckpointConfig(every_steps=4), total_steps=12)
    assert not caplog.records
    free(1.5)
    with pytest.raises(CheckpointError, match="the next checkpoint takes"):
        check_space(tmp_path, abstract, config=CheckpointConfig(every_steps=4), total_steps=12)


def test_an_unfinished_checkpoint_counts_as_free_and_a_finished_run_needs_its_model_only(free, abstract, tmp_path):
    (tmp_path / "checkpoints" / "12").mkdir(parents=True)
    free(1)
    check_space(tmp_path, abstract, config=CheckpointConfig(every_steps=4, keep=1), total_steps=12)
    free(1.5)
    with pytest.raises(CheckpointError, match="the next checkpoint takes"):
        check_space(tmp_path, abstract, config=CheckpointConfig(every_steps=4, keep=1), total_steps=16)
    unfinished = tmp_path / "checkpoints" / "16.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "data").write_bytes(b"x" * 2**22)
    check_space(tmp_path, abstract, config=CheckpointConfig(every_steps=4, keep=1), total_steps=16)


@pytest.mark.parametrize(
    ("error", "reason", "is_full"),
    [
        (OSError(28, "No space left on device"), "No space left on device", True),
        (OSError(122, "Disk quota exceeded"), "Disk quota exceeded", True),
        (ValueError("OUT_OF_RANGE: x [os_error_code='ENOSPC'] No space left on device"), "No space left on", True),
        (PermissionError(13, "Permission denied"), "Permission denied", False),
        (ValueError(""), "ValueError: no message", False),
    ],
)
def test_the_message_names_the_reason_and_space_only_where_it_is_the_reason(error, reason, is_full, tmp_path):
    with pytest.raises(CheckpointError) as caught, explained("it failed", tmp_path / "not" / "there", needed=512):
        raise error
    message = str(caught.value)
    assert message.startswith(f"it failed: {reason}")
    assert ("512 bytes are needed" in message) == is_full
    assert "run the same command again" in message
    with pytest.raises(CheckpointError, match=r"^explained$"), explained("it failed", tmp_path):
        raise CheckpointError("explained")


def test_the_claim_is_checked_before_the_space(tmp_path):
    (tmp_path / "mine").touch()
    with (
        pytest.raises(CheckpointError, match="is not empty"),
        run_folder.locked_on_all(tmp_path, {}, check=lambda: pytest.fail("checked")),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
