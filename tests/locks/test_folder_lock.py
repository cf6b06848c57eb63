"""One process works in a local folder, whatever became of the one before it and wherever it ran."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.paths import ROOT

from clipa_eqx.errors import CheckpointError
from clipa_eqx.locks.folder_lock import is_lock_file
from clipa_eqx.locks.held import held
from clipa_eqx.locks.owner import this_process
from clipa_eqx.training.run_lock import RUN_LOCK

LOCK_NAME = RUN_LOCK.name

HOLD = """
import sys, time
from pathlib import Path
from clipa_eqx.locks.held import held
from clipa_eqx.training.run_lock import RUN_LOCK
with held(Path(sys.argv[1]), RUN_LOCK):
    print("held", flush=True)
    time.sleep(600)
"""

RACE = """
import os, sys, time
from pathlib import Path
from clipa_eqx.errors import CheckpointError
from clipa_eqx.locks.held import held
from clipa_eqx.training.run_lock import RUN_LOCK
folder, number, links, start = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "links", float(sys.argv[4])
if not links:
    def refuse(*_):
        raise OSError(95, "Operation not supported")
    os.link = refuse
time.sleep(max(0.0, start - time.time()))
try:
    with held(folder, RUN_LOCK, lease=0.2, poll_seconds=0.01) as lock:
        # Fails if another process is inside: this is what the lock is for.
        os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
        time.sleep(0.05)
        lock._renew()
        lock.check()
        os.unlink(folder / "inside")
    print("won")
except CheckpointError as error:
    print("refused")
"""


def python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of ``tmp_path / "run"``."""
    process = python(HOLD, tmp_path / "run")
    assert process.stdout.readline() == "held\n", process.stderr.read()
    yield process
    process.kill()
    process.communicate()


def write_lock(folder, **fields):
    folder.mkdir(exist_ok=True)
    owner = {"token": "theirs", **this_process(), **fields}
    (folder / LOCK_NAME).write_text(json.dumps({**owner, "renewals": "0"}) + "\n")
    return owner


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_second_process_is_refused_with_host_pid_and_start_and_what_to_do(tmp_path, holder):
    owner = json.loads((tmp_path / "run" / LOCK_NAME).read_text())
    assert owner["pid"] == holder.pid
    with pytest.raises(CheckpointError) as caught, held(tmp_path / "run", RUN_LOCK):
        pass
    message = str(caught.value)
    assert f"is in use by process {holder.pid} on {owner['host']} (this machine)" in message
    assert f"which started at {owner['started']}" in message
    assert f"`kill {holder.pid}` lets it save and end" in message
    assert "--workdir" in message
    assert json.loads((tmp_path / "run" / LOCK_NAME).read_text())["token"] == owner["token"]
    assert entries(tmp_path / "run") == [LOCK_NAME]


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    # It is not collected yet: a supervisor may be slow to notice.
    since = time.monotonic()
    with held(tmp_path / "run", RUN_LOCK, lease=1e3):
        assert json.loads((tmp_path / "run" / LOCK_NAME).read_text())["pid"] == os.getpid()
        assert time.monotonic() - since < 30
    assert holder.wait() == -signal.SIGKILL


def test_the_lock_is_removed_at_the_end_and_so_is_a_folder_that_is_still_empty(tmp_path):
    with held(tmp_path / "new" / "run", RUN_LOCK):
        assert entries(tmp_path / "new" / "run") == [LOCK_NAME]
    assert entries(tmp_path) == []
    with contextlib.suppress(KeyError), held(tmp_path / "run", RUN_LOCK):
        (tmp_path / "run" / "result").touch()
        raise KeyError
    assert entries(tmp_path / "run") == ["result"]


def test_a_process_id_that_is_used_again_is_another_process(tmp_path):
    write_lock(tmp_path / "run", pid=os.getppid(), process_start="1")
    with held(tmp_path / "run", RUN_LOCK, lease=1e3):
        pass


def test_a_lock_of_this_process_from_before_a_restart_of_the_machine_waits_for_its_lease(tmp_path):
    write_lock(tmp_path / "run", boot="another start of this machine")
    ticks = clock_of(tmp_path / "run", lambda at: None)
    with held(tmp_path / "run", RUN_LOCK, lease=60.0, poll_seconds=0.0, clock=ticks):
        assert ticks.now >= 60


class clock_of:
    """A clock that moves 5 s each time it is read, and then does something with the time."""

    def __init__(self, folder, then):
        self.now, self.folder, self.then = 0.0, folder, then

    def __call__(self):
        self.now += 5.0
        self.then(self.now)
        return self.now


def test_the_lock_of_another_machine_is_taken_over_after_its_lease(tmp_path, caplog):
    write_lock(tmp_path / "run", host="elsewhere")
    ticks = clock_of(tmp_path / "run", lambda at: None)
    with caplog.at_level("INFO"), held(tmp_path / "run", RUN_LOCK, lease=60.0, poll_seconds=0.0, clock=ticks):
        assert 60 <= ticks.now <= 90
    waiting, taken = (record.getMessage() for record in caplog.records)
    assert "on elsewhere (another machine or container)" in waiting
    assert "waiting up to 60 s for a sign of life" in waiting
    assert "gave no sign of life for 60 s; its lock is taken over" in taken


def test_the_lock_of_another_machine_is_respected_as_soon_as_it_is_renewed(tmp_path):
    path = tmp_path / "run" / LOCK_NAME
    owner = write_lock(tmp_path / "run", host="elsewhere")

    def renew(now):
        if now > 30:
            path.write_text(json.dumps({**owner, "renewals": "1"}) + "\n")

    ticks = clock_of(tmp_path / "run", renew)
    with (
        pytest.raises(CheckpointError, match=r"in use by process \d+ on elsewhere .*scheduler that started it"),
        held(tmp_path / "run", RUN_LOCK, lease=60.0, poll_seconds=0.0, clock=ticks),
    ):
        pass
    assert ticks.now < 60
    assert entries(tmp_path / "run") == [LOCK_NAME]


def test_a_machine_that_releases_its_lock_while_another_waits_is_followed_at_once(tmp_path):
    write_lock(tmp_path / "run", host="elsewhere")

    def release(now):
        if now > 20:
            (tmp_path / "run" / LOCK_NAME).unlink(missing_ok=True)

    ticks = clock_of(tmp_path / "run", lambda now: release(now) if now < 40 else None)
    with held(tmp_path / "run", RUN_LOCK, lease=1e6, poll_seconds=0.0, clock=ticks):
        assert ticks.now < 100


@pytest.mark.parametrize("content", ["", "{", "3", '{"pid": 1}'])
def test_a_lock_that_a_kill_left_unfinished_is_taken_over_after_a_lease(content, tmp_path):
    (tmp_path / LOCK_NAME).write_text(content)
    ticks = clock_of(tmp_path, lambda now: None)
    with held(tmp_path, RUN_LOCK, lease=60.0, poll_seconds=0.0, clock=ticks):
        assert ticks.now >= 60
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert entries(tmp_path) == []


def test_a_process_that_was_suspended_notices_that_its_lock_was_taken_and_leaves_it(tmp_path):
    with held(tmp_path / "run", RUN_LOCK, renew_seconds=0.01) as lock:
        lock.check()
        write_lock(tmp_path / "run", host="elsewhere")
        assert wait_for(lambda: is_refused(lock))
        with pytest.raises(CheckpointError, match=r"was taken over by process \d+ on elsewhere"):
            lock.check()
    assert json.loads((tmp_path / "run" / LOCK_NAME).read_text())["host"] == "elsewhere"


def test_a_process_that_was_suspended_looks_at_its_lock_before_it_does_anything_more(tmp_path):
    now = [0.0]
    with held(tmp_path / "run", RUN_LOCK, renew_seconds=10.0, clock=lambda: now[0]) as lock:
        write_lock(tmp_path / "run", host="elsewhere")
        lock.check()  # nothing was late
        now[0] = 31.0
        with pytest.raises(CheckpointError, match="was taken over"):
            lock.check()


def test_a_lock_is_renewed_in_place_with_the_same_length(tmp_path):
    with held(tmp_path / "run", RUN_LOCK, renew_seconds=0.01):
        path = tmp_path / "run" / LOCK_NAME
        inode, before = path.stat().st_ino, path.read_bytes()
        assert wait_for(lambda: path.read_bytes() != before)
        assert (path.stat().st_ino, len(path.read_bytes())) == (inode, len(before))


def test_a_lock_that_the_user_deleted_is_made_again(tmp_path):
    with held(tmp_path / "run", RUN_LOCK, renew_seconds=0.01) as lock:
        (tmp_path / "run" / LOCK_NAME).unlink()
        assert wait_for((tmp_path / "run" / LOCK_NAME).exists)
        lock.check()
    assert not (tmp_path / "run").exists()


def test_leftovers_of_killed_processes_are_removed_and_others_kept(tmp_path, dead):
    gone = {"token": "a", **this_process(), "pid": dead}
    (tmp_path / f".{LOCK_NAME}.aa").write_text(json.dumps(gone))
    (tmp_path / f".{LOCK_NAME}.after-bb").write_text(json.dumps(gone))
    (tmp_path / f".{LOCK_NAME}.cc").write_text(json.dumps({**gone, "host": "elsewhere"}))
    old = tmp_path / f".{LOCK_NAME}.dd"
    old.write_text("")
    os.utime(old, (1, 1))
    kept = [f".{LOCK_NAME}.cc", f"{LOCK_NAME}.bak", "mine"]
    for name in kept[1:]:
        (tmp_path / name).touch()
    with held(tmp_path, RUN_LOCK):
        pass
    assert entries(tmp_path) == sorted(kept)
    assert [is_lock_file(name, LOCK_NAME) for name in kept] == [True, False, False]


def test_the_right_of_a_process_that_was_killed_while_it_took_over_is_passed_on(tmp_path, dead):
    first = write_lock(tmp_path / "run", pid=dead, token="first")
    for key, token in (("first", "second"), ("second", "third")):
        (tmp_path / "run" / f".{LOCK_NAME}.after-{key}").write_text(json.dumps({**first, "token": token}))
    with held(tmp_path / "run", RUN_LOCK, lease=1e3):
        assert entries(tmp_path / "run") == [LOCK_NAME]
    assert entries(tmp_path / "run") == []


def race(folder, left, links, *, processes, dead):
    """Start many processes that want the lock at the same moment; each fails if it is not alone when it has it."""
    match left:
        case "a killed process":
            write_lock(folder, pid=dead)
        case "another machine":
            write_lock(folder, host="elsewhere")
        case "damage":
            folder.mkdir()
            (folder / LOCK_NAME).write_text("{")
        case _:
            pass
    start = time.time() + 0.1 * processes
    racing = [python(RACE, folder, number, links, start) for number in range(processes)]
    said = [process.communicate(timeout=120) for process in racing]
    assert all(process.returncode == 0 for process in racing), said
    shown = [out.strip() for out, _ in said]
    assert shown.count("won") >= 1
    assert set(shown) <= {"won", "refused"}
    assert not folder.exists() or entries(folder) == []


@pytest.mark.parametrize(("left", "links"), [("a killed process", "links"), ("another machine", "no links")])
def test_of_many_processes_that_want_the_lock_one_at_a_time_has_it(left, links, tmp_path, dead):
    race(tmp_path / "run", left, links, processes=6, dead=dead)


@pytest.mark.slow
@pytest.mark.parametrize("left", ["nothing", "a killed process", "another machine", "damage"])
@pytest.mark.parametrize("links", ["links", "no links"])
def test_of_very_many_processes_that_want_the_lock_one_at_a_time_has_it(left, links, tmp_path, dead):
    for number in range(3):
        race(tmp_path / f"{number}", left, links, processes=16, dead=dead)


def wait_for(is_reached):
    end = time.monotonic() + 30
    while not is_reached() and time.monotonic() < end:
        time.sleep(0.005)
    return is_reached()


def is_refused(lock):
    with contextlib.suppress(CheckpointError):
        lock.check()
        return False
    return True


def test_no_thread_is_left_behind(tmp_path):
    before = threading.active_count()
    with held(tmp_path / "run", RUN_LOCK, renew_seconds=0.01):
        assert threading.active_count() == before + 1
    assert wait_for(lambda: threading.active_count() == before)


def test_a_file_system_without_links_is_served_by_exclusive_creation(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    with held(tmp_path / "run", RUN_LOCK):
        assert entries(tmp_path / "run") == [LOCK_NAME]
        with pytest.raises(CheckpointError, match="in use"), held(tmp_path / "run", RUN_LOCK):
            pass
    assert not Path(tmp_path / "run").exists()
