"""The wheel gives a pip user the library, the converters and a command for each program, under the names of a clone."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile

import pytest
from PIL import Image
from support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMMANDS = PROJECT["scripts"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without a network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the installed wheel and its commands; dependencies are those of the tests."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120)
    return target


@pytest.fixture
def call(installed, tmp_path):
    """Run something of the wheel from another folder, with the installed modules before those of the clone."""

    def run(*argv):
        environment = {**os.environ, "PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
        return subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    return run


def test_the_wheel_holds_all_modules_of_both_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    modules = {
        p.relative_to(ROOT).as_posix() for top in ("clipa_eqx", "conversion") for p in (ROOT / top).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == modules
    assert {name.split("/")[0] for name in names} == {"clipa_eqx", "conversion"}
    assert {"clipa_eqx/py.typed", "conversion/py.typed", "clipa_eqx/assets/bert_uncased_vocab.txt"} <= names


def test_each_program_has_a_command_and_each_module_one_identity(call, installed):
    code = "import clipa_eqx.saved.model as a, conversion.weights.rules as b; print(a.__file__, b.__file__)"
    shown = call(sys.executable, "-c", code)
    assert shown.stdout.split() == [
        str(installed / "clipa_eqx" / "saved" / "model.py"),
        str(installed / "conversion" / "weights" / "rules.py"),
    ]
    folders = {path.parent.name for path in (ROOT / "conversion").glob("*/__main__.py")}
    targets = {entry.split(":")[0] for entry in COMMANDS.values()}
    assert {f"conversion.{name}.__main__" for name in folders} <= targets
    assert {f"clipa_eqx.programs.{name}" for name in ("train", "evaluate", "show")} <= targets


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself_from_any_folder(command, call, installed):
    shown = call(str(installed / "bin" / command), "--help")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(f"usage: {command} ")


def test_a_mistake_has_exit_code_2_and_no_traceback(call, installed):
    shown = call(str(installed / "bin" / "clipa-verify"), "nowhere")
    assert shown.returncode == 2
    assert "nowhere" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_dump_is_converted_and_shown_from_another_folder(call, installed, tmp_path):
    images = tmp_path / "photos"
    for name in ("cat", "dog"):
        (images / name).mkdir(parents=True)
        Image.new("RGB", (20, 16), (200, 90, 40)).save(images / name / "1.png")
    done = call(str(installed / "bin" / "clipa-records"), "folder", str(images), "records")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "records" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["rows_read"] == 2
    shown = call(str(installed / "bin" / "clipa-show"), "records")
    assert shown.returncode == 0, shown.stderr
    assert "rows" in shown.stdout


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(wheel, tmp_path, monkeypatch):
    """With dependencies from the registry: what ``pip install`` gives a user who has no clone."""
    monkeypatch.delenv("PYTHONPATH", raising=False)  # with it, the clone would be imported
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(wheel)],
        check=True,
        timeout=900,
    )
    for command in COMMANDS:
        shown = subprocess.run(
            [tmp_path / "venv" / "bin" / command, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert shown.returncode == 0, shown.stderr
    loaded = subprocess.run(
        [python, "-c", "from clipa_eqx import CLIP, train; import conversion; print(conversion.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert str(tmp_path / "venv") in loaded.stdout
