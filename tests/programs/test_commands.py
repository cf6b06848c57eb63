"""The commands by name and the files in `scripts/`: quick help, exit codes, and any folder to start from."""

import importlib
import os
import re
import subprocess
import sys

import pytest
from support.paths import ROOT

from clipa_eqx.errors import ConfigError

COMMANDS = ("train", "evaluate", "show", "explain", "compare_runs", "replay", "plan")
FLAGS = {
    "train": (
        *("--workdir", "--init-from", "--print-config", "--help-config"),
        *("--distributed", "--coordinator-address", "--num-processes", "--process-index", "--coordinator-timeout"),
    ),
    "evaluate": ("--suite", "--data", "--out", "--templates-file", "--class-names", "--image-mode", "--predictions"),
    "show": ("--sheet", "--samples", "--mesh", "--report"),
    "explain": ("--data", "--workers"),
    "compare_runs": ("--out", "--dollars-per-device-hour"),
    "replay": ("--devices", "--from-start"),
    "plan": ("--topology", "--mesh", "--table", "--json", "--utilization", "--dollars-per-chip-hour", "--records"),
}
HELP_WITHOUT_JAX = """
import runpy, sys
sys.argv = [{path!r}, "--help"]
try:
    runpy.run_path({path!r}, run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
    assert not {{"jax", "grain", "orbax", "PIL"}} & set(sys.modules), sorted(sys.modules)
"""
IMPORT_WITHOUT_BACKEND = """
import clipa_eqx.programs.training_run
from jax._src import xla_bridge
assert not xla_bridge._backends, xla_bridge._backends
"""


def start(*command, cwd=ROOT):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_all_flags_and_loads_nothing_heavy(name):
    shown = start("-c", HELP_WITHOUT_JAX.format(path=str(ROOT / "scripts" / f"{name}.py")))
    assert shown.returncode == 0, shown.stderr
    assert [flag for flag in FLAGS[name] if flag not in shown.stdout] == []
    assert re.search(
        r"Exit codes: 0 (done|no difference|the step is as recorded).* 2 a mistake", " ".join(shown.stdout.split())
    )
    assert f"{name}.py" in shown.stdout.splitlines()[0]


def test_training_is_imported_without_a_jax_backend():
    """``--distributed`` initializes ``jax.distributed`` after the import, which must come before any backend."""
    done = start("-c", IMPORT_WITHOUT_BACKEND)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_with_the_exit_code_of_its_main(name, monkeypatch, capsys):
    module = importlib.import_module(f"clipa_eqx.programs.{name}")
    monkeypatch.setattr(module, "main", lambda: 1)
    assert module.program() == 1
    monkeypatch.setattr(module, "main", lambda: None)
    assert module.program() == 0


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("train", ("none.py",), "error: config file none.py does not exist; give the path of a Python file"),
        ("evaluate", ("none", "--suite", "zero-shot", "--data", "d", "--out", "."), "error: --out . is a folder"),
        ("replay", ("none", "7"), "error: none does not exist; expected a run folder"),
        ("plan", ("none.py", "--topology", "v9:4x4"), "error: --topology v9:4x4: the chip v9 is not known; choose one"),
        (
            "show",
            ("none",),
            "error: none does not exist; expected a run folder, a model folder, a record folder or a Python config "
            "file",
        ),
    ],
)
def test_a_script_runs_from_another_folder_and_reports_a_mistake_with_exit_code_2(name, flags, message, tmp_path):
    done = start(ROOT / "scripts" / f"{name}.py", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_script_only_calls_its_command(name):
    assert len((ROOT / "scripts" / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 12


@pytest.mark.parametrize("name", ["recipes_page", "quickstart_figure", "inverse_scaling_figure"])
def test_help_and_mistakes_write_no_page_or_figure(name, monkeypatch, capsys):
    module = importlib.import_module(f"scripts.{name}")
    written: list[object] = []
    monkeypatch.setattr(module, "write_text", lambda *_: written.append(name))
    with pytest.raises(SystemExit):
        module.main(["--help"])
    assert capsys.readouterr().out.startswith("usage: ")
    with pytest.raises(ConfigError, match="unrecognized arguments: --hlep; for --hlep, did you mean --help"):
        module.main(["--hlep"])
    assert not written
    module.main([])
    assert written
