"""Files are complete or absent under their name, also after a kill; the next start removes what a kill left."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from clipa_eqx.replacing import is_temporary, new_file, temporary_path, write_text

# Run by a process that kills itself, with SIGKILL, between the write and the rename.
_KILLED = "import os, signal; os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"

_CLAIM = """
from pathlib import Path
from clipa_eqx.training.run_folder import claim
claim(Path("run"), {"version": 1, "config": {"a": 1}, "data_sha256": "0", "vocab_sha256": "0"})
"""
_MANIFEST = """
from clipa_eqx.data.manifest import Manifest, write_manifest
write_manifest("data", Manifest(shards=(), rows_read=2, rows_written=0, rows_dropped={"empty": 2}))
"""
_METRICS = """
from pathlib import Path
from clipa_eqx.training.metrics import MetricLog
log = MetricLog(Path("run/metrics.jsonl"), step=1)
log.write(2, {"loss": 0.5})
log.close()
"""
_RECORDS = """
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.records import Record
write_records([Record(key="a", image=b"x", captions=("y",))], "records/new")
"""


_NEVER = 2**22 + 1  # larger than any process id on Linux


def start(code, folder, *, is_killed):
    """Run a program in a folder; returns the names of the files that are there afterwards."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", (_KILLED if is_killed else "") + code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == (-signal.SIGKILL if is_killed else 0), done.stderr
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("code", "before", "unfinished", "after"),
    [
        (_CLAIM, {}, r"run/.config.json.new-", {"run/config.json": '"data_sha256": "0"'}),
        (_MANIFEST, {}, r"data/.manifest.json.new-", {"data/manifest.json": '"rows_read": 2'}),
        (
            _METRICS,
            {"run/metrics.jsonl": '{"step": 1}\n{"step": 2}\n'},
            r"run/.metrics.jsonl.new-",
            {"run/metrics.jsonl": '{"step": 1}\n{"step": 2, "loss": 0.5}\n'},
        ),
        (_RECORDS, {}, "records/.new.new-", {"records/new/manifest.json": '"rows_written": 1'}),
    ],
    ids=["claim", "manifest", "metrics", "records"],
)
def test_after_a_kill_between_write_and_rename_the_same_command_succeeds(code, before, unfinished, after, tmp_path):
    for name, text in before.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    left = start(code, tmp_path, is_killed=True)
    assert any(name.startswith(unfinished) for name in left)
    assert {name: (tmp_path / name).read_text() for name in before} == before  # the former content is complete
    assert not set(after) - set(before) & set(left)
    names = start(code, tmp_path, is_killed=False)
    assert not [name for name in names if "new-" in name]
    assert {name: part in (tmp_path / name).read_text() for name, part in after.items()} == dict.fromkeys(after, True)


def test_a_folder_with_a_record_that_version_0_1_0_left_unfinished_can_be_claimed(tmp_path, dead):
    (tmp_path / "run").mkdir()
    (tmp_path / f"run/config.json.tmp-{dead}").write_text("{")
    assert start(_CLAIM, tmp_path, is_killed=False) == ["run/config.json"]


def test_an_unfinished_record_of_a_process_that_runs_is_no_obstacle_and_is_kept(tmp_path):
    """Ids are reused: a killed process in a container may have had the id of one that runs now."""
    (tmp_path / "run").mkdir()
    name = f"run/.config.json.new-{os.getpid()}"
    (tmp_path / name).write_text("{")
    assert start(_CLAIM, tmp_path, is_killed=False) == [name, "run/config.json"]


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "result.json"
    with new_file(path) as temporary:
        temporary.write_text("new")
        assert temporary == temporary_path(path, "new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_failing_block_leaves_the_former_file_and_no_trace(tmp_path):
    write_text(tmp_path / "a", "before")
    writing = new_file(tmp_path / "a")
    writing.__enter__().write_text("half")
    assert not writing.__exit__(KeyError, KeyError(), None)
    assert (tmp_path / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_target_of_a_link_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "there").mkdir()
    write_text(tmp_path / "there/a", "before")
    (tmp_path / "link").symlink_to("there/a")
    write_text(tmp_path / "link", "after")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there/a").read_text() == "after"


def test_only_a_file_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        write_text(tmp_path / "pipe", "text")
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "text")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OSError, match="circle"):
        write_text(tmp_path / "circle", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "pipe"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_modes_follow_the_umask(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path, dead):
    (tmp_path / f".a.new-{dead}").write_text("half")
    kept = [f".a.new-{os.getppid()}", f".b.new-{dead}", f".a.new-{dead}x", "a.tmp", f"a.tmp-{dead}", ".a.new-20251112"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    with new_file(tmp_path / "a", clean=False) as temporary:
        temporary.write_text("text")
    assert (tmp_path / f".a.new-{dead}").exists()
    write_text(tmp_path / "a", "text")
    assert {path.name for path in tmp_path.iterdir()} == {"a", *kept}


def test_leftovers_under_the_former_name_are_removed_where_this_package_wrote_them(tmp_path, dead):
    (tmp_path / f"config.json.tmp-{dead}").write_text("half")
    kept = ["config.json.tmp-20251112", f"xconfig.json.tmp-{dead}", "config.json.tmp-x"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / f"metrics.jsonl.tmp-{dead}").mkdir()
    write_text(tmp_path / "config.json", "text")
    write_text(tmp_path / "metrics.jsonl", "text")
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        f"metrics.jsonl.tmp-{dead}",
        *kept,
    }


def test_names_of_temporary_files_are_recognized():
    assert is_temporary(".config.json.new-1", "config.json")
    assert is_temporary("config.json.tmp-1", "config.json")
    assert not is_temporary(".configXjson.new-1", "config.json")
    assert not is_temporary("config.json.new-1", "config.json")


def test_content_and_name_are_synced_to_disk(tmp_path, monkeypatch):
    synced: list[Path] = []
    real = os.fsync

    def sync(handle):
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())
        real(handle)

    monkeypatch.setattr(os, "fsync", sync)
    write_text(tmp_path / "a", "text")
    assert synced == [temporary_path(tmp_path / "a", "new"), tmp_path]
