"""Commands in messages are the ones that the user can paste: in a clone, installed, and without activation."""

import shlex
import stat
import sys

import pytest
from support.paths import ROOT

from clipa_eqx.commands import command_line, minimal_config, next_lines


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A folder of programs as an environment has it, that the shell does not search."""
    programs = tmp_path / "env" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "clipa-train", "clipa-evaluate"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(stat.S_IRWXU)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    return programs


def test_a_program_of_a_clone_names_the_files_of_the_clone(environment, monkeypatch):
    monkeypatch.setenv("PATH", str(environment))
    monkeypatch.setattr(sys, "argv", ["scripts/train.py"])
    monkeypatch.chdir(ROOT)
    assert command_line("evaluate", "runs/a b/model") == "python scripts/evaluate.py 'runs/a b/model'"
    assert command_line("show", "RUN") == "python scripts/show.py RUN"
    assert command_line("verify", "DIR") == "python -m conversion.verify DIR"
    assert minimal_config() == "configs/minimal.py"
    monkeypatch.chdir(environment)
    assert shlex.split(command_line("train", "x")) == ["python", str(ROOT / "scripts" / "train.py"), "x"]
    assert minimal_config("minimal_tune") == str(ROOT / "configs" / "minimal_tune.py")


def test_an_installed_program_names_installed_commands(environment, monkeypatch):
    monkeypatch.setenv("PATH", str(environment))
    monkeypatch.setattr(sys, "argv", [str(environment / "clipa-train")])
    assert command_line("evaluate", "m") == "clipa-evaluate m"


def test_programs_of_an_environment_that_is_not_active_are_named_by_path(environment, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(environment / "clipa-train")])
    assert command_line("evaluate", "m") == "env/bin/clipa-evaluate m"
    monkeypatch.setattr(sys, "argv", ["scripts/train.py"])
    assert command_line("records", "verify", "d") == "env/bin/python -m conversion.records verify d"
    monkeypatch.chdir(environment.parent)
    monkeypatch.setattr(sys, "executable", "/elsewhere/bin/python")
    assert command_line("flax").startswith("/elsewhere/bin/python -m ")


def test_without_a_clone_scripts_are_commands(environment, monkeypatch):
    monkeypatch.setattr("clipa_eqx.commands._ROOT", environment)
    monkeypatch.setattr(sys, "argv", ["my_own_program.py"])
    assert command_line("train", "CONFIG.py") == "clipa-train CONFIG.py"
    assert minimal_config() == "CONFIG.py"


def test_the_lines_at_the_end_of_a_program_are_commands_with_a_comment():
    lines = next_lines(("a 'b c'", "why"), ("d", "what for"))
    assert lines[0] == "next:"
    assert [shlex.split(line, comments=True) for line in lines[1:]] == [["a", "b c"], ["d"]]
