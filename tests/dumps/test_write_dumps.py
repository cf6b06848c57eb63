"""The dumps in ``written/`` are those that the pinned tools write today."""

import importlib.util
import json
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def script():
    spec = importlib.util.spec_from_file_location("write_dumps", HERE / "write_dumps.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tool", script().tools())
def test_each_tool_has_dumps_and_exact_versions(tool):
    assert all("==" in package for package in script().packages(HERE / f"tools/{tool}.py"))
    assert json.loads((HERE / f"written/{tool}/read.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("tool", script().tools())
def test_the_tool_writes_and_reads_the_same_today(tool, tmp_path):
    script().write_dumps(tool, tmp_path / tool)
    written, now = (json.loads((folder / tool / "read.json").read_text()) for folder in (HERE / "written", tmp_path))
    assert now == written
    names = [
        {str(path.relative_to(folder / tool)) for path in (folder / tool).rglob("*") if path.is_file()}
        for folder in (HERE / "written", tmp_path)
    ]
    assert names[0] == names[1]
