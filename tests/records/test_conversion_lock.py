"""One conversion writes to a folder at a time, on any host, and late tasks of others change nothing."""

import errno
import fcntl
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from support import dumps
from support.bucket_servers import bucket_server
from support.conversions import content, ingest, interrupted
from support.dumps import samples
from support.paths import ROOT

from clipa_eqx.buckets.bucket import bucket_at
from clipa_eqx.errors import DataError
from clipa_eqx.locks import fence as fences
from clipa_eqx.locks import held as holding
from clipa_eqx.locks.fence import LateError
from clipa_eqx.locks.owner import this_process
from conversion.records import convert as module
from conversion.records import locking, staging
from conversion.records.listing import list_names
from conversion.records.part import convert_part
from conversion.records.places import open_place
from conversion.records.reading import read_files
from conversion.records.writing import write_file

LOCK_NAME = locking.LOCK.name


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """No time is spent on processes that may still end and on file systems that show an older content."""
    monkeypatch.setattr(holding, "_ENDING_SECONDS", 0.0)
    monkeypatch.setattr(fences, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(fences, "MISSING_SECONDS", 0.0)


@pytest.fixture
def source(tmp_path):
    """Three shards; the last repeats a key of the first, so it is written twice."""
    shards = [samples(3, first=3 * i) for i in range(3)]
    shards[2][1] = shards[0][1]
    dumps.write_tars(tmp_path / "source", shards)
    return tmp_path / "source"


@pytest.fixture(scope="module")
def servers():
    """Starts each server of buckets once."""
    with pytest.MonkeyPatch.context() as patch:
        running = {}

        def start(scheme):
            if scheme not in running:
                server = bucket_server(scheme)
                running[scheme] = server, server.__enter__()
                for name, value in running[scheme][1].variables(patience=5).items():
                    patch.setenv(name, value)
            return running[scheme][1]

        yield start
        for server, _ in running.values():
            server.__exit__(None, None, None)


@pytest.fixture(params=["local", "gs", pytest.param("s3", marks=pytest.mark.slow)])
def target(request, tmp_path, servers):
    """The address of a new folder."""
    return new_folder(request.param, tmp_path, servers)


SLOW_BUCKETS = [pytest.param(scheme, marks=pytest.mark.slow) for scheme in ("gs", "s3")]


@pytest.fixture(params=["local", *SLOW_BUCKETS])
def anywhere(request, tmp_path, servers):
    """The same for tests in which a bucket differs little from a local folder: those with buckets are slow ones."""
    return new_folder(request.param, tmp_path, servers)


def new_folder(kind, tmp_path, servers):
    return str(tmp_path / "out") if kind == "local" else servers(kind).url(tmp_path.name)


def other_spelling(target):
    """Another address of the same folder."""
    scheme, _, rest = target.partition("://")
    return {"gs": f"gcs://{rest}", "s3": f"s3a://{rest}"}.get(scheme, f"{target}/../out")


def files(target):
    """The bytes of all files of a folder, at any depth, without the lock."""
    bucket = None if target[0] == "/" else bucket_at(target)
    if bucket is not None:
        found = {name: bucket.read(name) for name in bucket.names()}
    else:
        paths = [path for path in Path(target).rglob("*") if path.is_file()]
        found = {str(path.relative_to(target)): path.read_bytes() for path in paths}
    return {name: data for name, data in found.items() if name.partition("/")[0] != LOCK_NAME}


def write_lock(target, number=0, **fields):
    """Write the lock of another process, in place of ours if there is one."""
    owner = {"token": "theirs", **this_process(), "pid": 7, "stage": 0, "number": number, **fields}
    if target[0] == "/":
        Path(target).mkdir(exist_ok=True)
        (Path(target) / LOCK_NAME).write_text(json.dumps(owner))
        return
    bucket = bucket_at(target)
    ours = list(bucket.names(LOCK_NAME))
    bucket.delete(ours)
    bucket.write(f"{LOCK_NAME}/{number + len(ours) * 1000:012d}", json.dumps(owner).encode())


def remove_lock(target):
    if target[0] == "/":
        (Path(target) / LOCK_NAME).unlink()
    else:
        bucket_at(target).delete(bucket_at(target).names(LOCK_NAME))


def during(monkeypatch, what, *, when=lambda job: job.number == 1):
    """Do something once, before the conversion of a part."""
    done = []

    def converting(job, seen):
        if when(job) and not done:
            done.append(job)
            what(job)
        return convert_part(job, seen)

    monkeypatch.setattr(module, "convert_part", converting)
    return done


def ignored(units):
    """Takes the place of a progress bar."""


def test_a_second_conversion_is_refused_with_its_owner_and_disturbs_nothing(source, target, monkeypatch):
    refused = []

    def second(job):
        for spelling in (target, other_spelling(target)):
            with pytest.raises(DataError, match="is in use by") as caught:
                ingest(source, spelling, overwrite=True, min_side=9)
            refused.append(str(caught.value))

    during(monkeypatch, second)
    assert ingest(source, target).rows_written == 8
    here = this_process()
    for message in refused:
        assert f"in use by process {os.getpid()} on {here['host']} (this machine), which started at" in message
        assert f"`kill {os.getpid()}` ends it, and the same command resumes it" in message
        assert "choose another folder" in message
    assert len(refused) == 2


def test_a_finished_folder_holds_nothing_but_shards_and_the_manifest(source, target, tmp_path):
    manifest = ingest(source, target)
    assert set(files(target)) == {shard.name for shard in manifest.shards} | {"manifest.json"}
    names = fsspec.url_to_fs(target, **({} if target[0] == "/" else {"skip_instance_cache": True}))[0].ls(target)
    assert len(names) == len(manifest.shards) + 1
    ingest(source, tmp_path / "whole")
    assert files(target) == content(tmp_path / "whole")


def test_a_bucket_shows_at_once_what_another_process_wrote(servers):
    place = open_place(servers("gs").url("shown"))
    assert list_names(place) == []
    bucket_at(place.url).write("part", b"content")
    assert list_names(place) == ["part"]
    assert place.fs.exists(place.child("part"))
    assert read_files(place, ["part"]) == {"part": b"content"}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_several_workers_write_the_same_to_a_bucket(scheme, source, servers, tmp_path):
    ingest(source, tmp_path / "whole")
    ingest(source, servers(scheme).url("workers"), workers=2)
    assert files(servers(scheme).url("workers")) == content(tmp_path / "whole")


def test_the_lock_of_a_killed_process_is_taken_over_at_once(source, target, dead):
    write_lock(target, pid=dead)
    assert ingest(source, target).rows_written == 8
    assert LOCK_NAME not in str(fsspec.url_to_fs(target)[0].find(target))


def test_the_lock_of_another_host_is_taken_over_after_its_lease(source, target, monkeypatch, caplog):
    write_lock(target, host="elsewhere")
    monkeypatch.setattr(locking, "held", functools.partial(holding.held, lease=0.2, poll_seconds=0.05))
    with caplog.at_level("INFO"):
        assert ingest(source, target).rows_written == 8
    assert "is locked by process 7 on elsewhere" in caplog.text
    assert "waiting up to 0.2 s for a sign of life" in caplog.text
    assert "gave no sign of life for 0.2 s; its lock is taken over" in caplog.text


def test_a_conversion_whose_lock_was_taken_writes_nothing_more(source, target, monkeypatch):
    before = {}

    def taken(job):
        write_lock(target, host="elsewhere")
        before.update(files(target))

    during(monkeypatch, taken)
    with pytest.raises(DataError, match=r"was taken over by process 7 on elsewhere .*This conversion ends now"):
        ingest(source, target)
    assert files(target) == before
    remove_lock(target)
    assert ingest(source, target).rows_written == 8


def test_a_lock_that_was_taken_as_the_last_part_ended_lets_no_manifest_be_written(source, anywhere, monkeypatch):
    real = module.close_account

    def taken(*arguments):
        write_lock(anywhere, host="elsewhere")
        return real(*arguments)

    monkeypatch.setattr(module, "close_account", taken)
    with pytest.raises(DataError, match="was taken over by process 7 on elsewhere"):
        ingest(source, anywhere)
    assert "manifest.json" not in files(anywhere)


def test_a_task_of_an_ended_conversion_changes_nothing(source, anywhere, monkeypatch):
    late = during(monkeypatch, lambda job: None)
    ingest(source, anywhere)
    before = files(anywhere)
    for _ in range(2):
        with pytest.raises(LateError):
            convert_part(late[0], ignored)
        assert files(anywhere) == before
        ingest(source, anywhere, overwrite=True, min_side=9)
        before = files(anywhere)


def test_a_task_of_a_killed_conversion_changes_nothing_while_another_works(source, target, monkeypatch):
    late = during(monkeypatch, lambda job: None)
    ingest(source, target)
    before = {}

    def is_late(job):
        before.update(files(target))
        with pytest.raises(LateError):
            convert_part(late[0], ignored)
        assert files(target) == before

    during(monkeypatch, is_late)
    ingest(source, target, overwrite=True, min_side=9)


def test_a_first_attempt_does_not_bring_duplicates_back(source, anywhere, monkeypatch, tmp_path):
    first = during(monkeypatch, lambda job: None, when=lambda job: job.number == 2)
    tried = []

    def converting(job, seen):
        report = convert_part(job, seen)
        if job.number == 2 and not job.duplicates:
            first.append(job)
        if job.duplicates:
            with pytest.raises(LateError):
                convert_part(first[0], ignored)
            tried.append(job)
        return report

    monkeypatch.setattr(module, "convert_part", converting)
    ingest(source, anywhere)
    assert len(tried) == 1
    monkeypatch.undo()
    ingest(source, tmp_path / "whole")
    assert files(anywhere) == content(tmp_path / "whole")


def test_a_task_that_was_suspended_after_its_last_look_has_nothing_to_move_in(source, target, monkeypatch):
    place = open_place(target)
    jobs = during(monkeypatch, lambda job: None)
    ingest(source, target)
    with locking.locked(place) as hold:
        write_file(place, "_unfinished/command.json", b"{}")
        job = module.dataclasses.replace(jobs[0], fence=hold.fence)
        before, looks = files(target), []

        def look(*arguments):
            looks.append(locking.check_current(*arguments))
            if len(looks) == 2:  # the one before the shard is moved in
                hold.next_stage()

        monkeypatch.setattr(staging, "check_current", look)
        with pytest.raises(LateError):
            convert_part(job, ignored)
        assert len(looks) == 2
        assert files(target) == before


def test_staged_files_of_running_tasks_are_kept_and_all_others_removed(target):
    place = open_place(target)

    def stage(name):
        path = place.child(f"_unfinished/{name}/shard")
        place.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        place.fs.pipe_file(path, b"staged")

    for name in ("tmp-1234", "tmp-aa-000001-x"):
        stage(name)
    with locking.locked(place) as hold:
        assert files(target) == {}
        hold.next_stage()
        earlier = locking.staged_prefix(hold.fence)
        hold.next_stage()
        own = f"{locking.staged_prefix(hold.fence)}x"  # perhaps of another host
        for name in (f"{earlier}y", own):
            stage(name)
        hold.remove_staged()
        assert list(files(target)) == [f"_unfinished/{own}/shard"]


def test_a_shard_that_something_else_changed_is_noticed_before_the_manifest(source, anywhere, monkeypatch):
    real = module.close_account

    def changed(*arguments):
        place = open_place(anywhere)
        place.fs.pipe_file(place.child("shard-000001-000.array_record"), b"of something else")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "close_account", changed)
        with pytest.raises(DataError, match=r"shard-000001-000.* 17 .*repeat the same command"):
            ingest(source, anywhere)
    assert "manifest.json" not in files(anywhere)
    assert ingest(source, anywhere).rows_written == 8


def test_a_finished_conversion_needs_no_lock(source, anywhere, monkeypatch):
    manifest = ingest(source, anywhere)
    monkeypatch.setattr(module, "locked", lambda place: pytest.fail("locked"))
    assert ingest(source, anywhere) == manifest
    with pytest.raises(DataError, match="holds records already"):
        ingest(source, anywhere, min_side=9)


def test_a_lock_that_a_kill_left_in_a_finished_folder_is_removed_by_the_same_command(source, anywhere, dead):
    manifest = ingest(source, anywhere)
    write_lock(anywhere, pid=dead)
    assert ingest(source, anywhere) == manifest
    assert LOCK_NAME not in str(fsspec.url_to_fs(anywhere)[0].find(anywhere))


def test_a_file_system_without_file_locks_and_links_is_served(source, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)

    def second(job):
        with pytest.raises(DataError, match="is in use by"):
            ingest(source, tmp_path / "out")

    assert during(monkeypatch, second) == []
    assert ingest(source, tmp_path / "out").rows_written == 8
    assert LOCK_NAME not in os.listdir(tmp_path / "out")


class Elsewhere(MemoryFileSystem):
    """A store that other processes could see, without exclusive creation."""

    protocol = "elsewhere"
    store, pseudo_dirs = {}, [""]


def test_a_store_without_locks_gets_one_warning_and_memory_gets_none(source, caplog):
    fsspec.register_implementation("elsewhere", Elsewhere, clobber=True)
    ingest(source, "elsewhere://out")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("elsewhere://out is not locked, because URLs of this kind have no locks")
    caplog.clear()
    ingest(source, "memory://out")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    fsspec.filesystem("memory").rm("/out", recursive=True)


def test_ctrl_c_ends_a_conversion_that_waits_for_a_lease(source, tmp_path, monkeypatch):
    interrupted(monkeypatch, source, tmp_path / "out", after=1)
    write_lock(str(tmp_path / "out"), host="elsewhere")
    before = content_of_all(tmp_path / "out")
    process = subprocess.Popen(
        [sys.executable, "-m", "conversion.records", "webdataset", str(source), str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    shown = next(line for line in process.stderr if "sign of life" in line)
    assert "is locked by process 7 on elsewhere" in shown
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert content_of_all(tmp_path / "out") == before


def content_of_all(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
