"""Temporary files of attempts: each has a folder of its own, which is removed, also after a kill."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from clipa_eqx.cluster import attempts


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_of_an_attempt_ends_with_it_and_those_of_killed_processes_are_removed(base):
    (base / "clipa_eqx-worker-left").mkdir()
    with attempts._temporary_files():
        used = Path(tempfile.gettempdir())
        tempfile.tempdir = str(base)
        attempts._remove_left_files()
        assert list(base.iterdir()) == [used]
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EBADF])
def test_a_file_system_without_locks_is_worked_on_and_nothing_left_there_is_removed(number, base, monkeypatch):
    def refuse(handle, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    left = base / "clipa_eqx-worker-left"
    left.mkdir()
    with attempts._temporary_files():
        used = Path(tempfile.gettempdir())
        assert used.parent == base
        tempfile.tempdir = str(base)
        attempts._remove_left_files()
        assert set(base.iterdir()) == {used, left}
    assert list(base.iterdir()) == [left]
