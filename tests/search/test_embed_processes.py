"""Real processes that embed: two that share the shards, one that is killed again and again, and two in one folder."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from support.paths import ROOT
from support.process_groups import free_port, run_programs
from support.scored_runs import noise_png

from clipa_eqx.cli import OK, USAGE, run
from clipa_eqx.errors import ConfigError
from clipa_eqx.file_lock import locked_folder
from clipa_eqx.programs.embed import main
from clipa_eqx.search.embedding_lock import locked

PROGRAM = """
import json, sys
from clipa_eqx.cli import run
from clipa_eqx.programs.embed import main
from clipa_eqx.search.embedding_lock import locked
sys.exit(run(lambda: main(json.loads(sys.argv[1]))))
"""


@pytest.fixture
def many(tmp_path):
    """A folder of 120 small images."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(120):
        (folder / f"{i:03}.png").write_bytes(noise_png(i))
    return folder


def command(model_folder, images, out):
    return [str(model_folder), "--images", str(images), "--out", str(out), "--shard-inputs", "4", "--batch-size", "4"]


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_two_processes_write_the_folder_of_one(model_folder, many, tmp_path):
    port = free_port()
    place = ["--distributed", "--coordinator-address", f"localhost:{port}", "--num-processes", "2", "--process-index"]
    words = [[*command(model_folder, many, tmp_path / "two"), *place, str(number)] for number in range(2)]
    ended = run_programs([PROGRAM] * 2, [json.dumps(one) for one in words])
    assert [code for code, _ in ended] == [0, 0], "\n\n".join(said for _, said in ended)
    assert "120 images in 30 shards, 30 of them new" in ended[0][1]
    assert "written to" not in ended[1][1]
    (alone,) = run_programs([PROGRAM], [json.dumps(command(model_folder, many, tmp_path / "one"))])
    assert alone[0] == 0, alone[1]
    assert content_of(tmp_path / "two") == content_of(tmp_path / "one")


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again_ends_with_the_bytes_of_one_that_is_not(model_folder, many, tmp_path):
    (alone,) = run_programs([PROGRAM], [json.dumps(command(model_folder, many, tmp_path / "one"))])
    assert alone[0] == 0, alone[1]
    out, kills = tmp_path / "killed", 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(command(model_folder, many, out))],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": "1",
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            },
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        before = len(list(out.glob("*.npy")))
        while process.poll() is None and len(list(out.glob("*.npy"))) < min(before + 7, 30):
            time.sleep(0.001)
        if process.poll() is None and kills < 4:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            assert not json.loads((out / "embeddings.json").read_text())["complete"]
            continue
        assert process.wait() == 0
        break
    assert kills >= 2
    assert content_of(out) == content_of(tmp_path / "one")  # no temporary file is left either


@pytest.mark.usefixtures("quick_compile")
def test_a_second_process_in_the_same_folder_is_refused(model_folder, photos, tmp_path, capsys):
    with locked(tmp_path / "out"):
        assert run(partial(main, command(model_folder, photos, tmp_path / "out"))) == USAGE
    message = capsys.readouterr().err
    assert f"out is in use by process {os.getpid()} on" in message
    assert "or give another --out" in message
    assert run(partial(main, command(model_folder, photos, tmp_path / "out"))) == OK


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_locked_too(tmp_path, monkeypatch, code):
    real = os.open

    def refused(path, flags, *mode):
        if flags & os.O_RDWR:
            raise OSError(code, os.strerror(code))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refused)
    with (
        locked_folder(tmp_path, error=ConfigError),
        pytest.raises(ConfigError, match="another process"),
        locked_folder(tmp_path, error=ConfigError),
    ):
        pass


def test_a_lock_that_cannot_be_made_is_one_message(tmp_path):
    (tmp_path / ".lock").mkdir()
    with (
        pytest.raises(ConfigError, match="cannot be locked"),
        locked_folder(tmp_path, error=ConfigError),
    ):
        pass
