"""Notebooks: stored without results, free of the paths of a machine, and (slow) each runs from top to bottom."""

import json
import os
import re
import subprocess
import sys

import nbformat
import pytest
from support.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTE = """
import sys
import nbclient, nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["lora", "search_photos"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_results_and_its_cells_are_python(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.source for cell in code_cells(notebook) if cell.outputs or cell.execution_count] == []
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in code_cells(notebook):
        compile(cell.source, f"{path.name}, cell {cell.id}", "exec")
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|Users|tmp|work)/", text)
    for name in re.findall(r"\b(?:docs|scripts)/\w+\.\w+", text):
        assert (ROOT / name).is_file(), name


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path):
    places = ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR", "TMPDIR", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XLA_")}
    environment |= {name: str(tmp_path / name) for name in places} | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for name in places:
        (tmp_path / name).mkdir()
    result = tmp_path / "result.ipynb"
    command = [sys.executable, "-c", EXECUTE, str(path), str(result)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    outputs = [one for cell in code_cells(nbformat.read(result, as_version=4)) for one in cell.outputs]
    printed = "".join(one.text for one in outputs if one.output_type == "stream" and one.name == "stdout")
    print(printed)
    assert any("image/png" in one.get("data", {}) for one in outputs)
    if path.stem == "search_photos":
        [share] = re.findall(r"^(\d+) % of the first five are right$", printed, flags=re.M)
        assert int(share) >= 80
        assert any("<img" in json.dumps(one.get("data", {}).get("text/html", "")) for one in outputs)
    else:
        before, after = (eval(text) for text in re.findall(r"^(?:before|after ) (\{.*\})$", printed, flags=re.M))
        assert before["filled"] > 0.6
        assert after["outlined"] > before["outlined"] + 0.2
        [difference] = re.findall(r"^largest difference (\S+)$", printed, flags=re.M)
        assert float(difference) < 1e-6
