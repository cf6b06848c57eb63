"""One conversion writes to a folder at a time, on any host, also in a bucket."""

import errno
import fcntl
import functools
import os
import signal
import subprocess
import sys

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from support.conversion_locks import LOCK_NAME, during, files, remove_lock, with_repeated_key, write_lock
from support.conversions import content, ingest, interrupted
from support.paths import ROOT

from clipa_eqx.buckets.bucket import bucket_at
from clipa_eqx.errors import DataError
from clipa_eqx.locks import held as holding
from clipa_eqx.locks.owner import this_process
from conversion.records import convert as module
from conversion.records import locking
from conversion.records.listing import list_names
from conversion.records.places import open_place
from conversion.records.reading import read_files

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture
def source(tmp_path):
    return with_repeated_key(tmp_path / "source")


def other_spelling(target):
    """Another address of the same folder."""
    scheme, _, rest = target.partition("://")
    return {"gs": f"gcs://{rest}", "s3": f"s3a://{rest}"}.get(scheme, f"{target}/../out")


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
