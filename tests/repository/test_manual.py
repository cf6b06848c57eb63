"""The manual fits the code: the map of the tree, the API page, the navigation, and a build without warnings."""

import dataclasses
import html
import inspect
import re
import subprocess
import sys
from typing import get_args

import pytest
from support.paths import ROOT

import clipa_eqx
from clipa_eqx.data.load_batch import OnBadRecord
from clipa_eqx.evals.prompts import ClassNameSet, PromptSet
from clipa_eqx.models.pool import ImagePool, TextPool
from clipa_eqx.tokenizer.reduce import Reduction

DOCS = ROOT / "docs"
# Folders of files that belong to no room of their own.
UNMAPPED = {"assets", "__pycache__"}


def mapped() -> list[str]:
    """Paths of the map in docs/architecture.md, folders with a slash at the end."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    lines = text.split("```")[1].strip("\n").splitlines()
    paths, top = [], ""
    for line in lines:
        name = line.split()[0]
        if not line.startswith(" "):
            top = name
            paths.append(name)
        else:
            paths.append(top + name)
    return paths


def test_every_path_of_the_map_is_there():
    missing = [
        path for path in mapped() if not ((ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file())
    ]
    assert missing == []


def test_every_room_is_on_the_map():
    packages = [
        path.parent for path in (*ROOT.glob("clipa_eqx/**/__init__.py"), *ROOT.glob("conversion/*/__init__.py"))
    ]
    rooms = {f"{path.relative_to(ROOT).as_posix()}/" for path in packages}
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("clipa_eqx/*.py") if path.name != "__init__.py"}
    tops = {f"{path.name}/" for path in ROOT.iterdir() if any(path.glob("*.py")) or any(path.glob("*/*.py"))}
    tops -= {name for name in tops if name.startswith((".", "build", "dist", "runs"))}
    assert (rooms | files | tops) - set(mapped()) == set()


def test_each_public_name_is_on_the_api_page_once():
    shown = re.findall(r"^::: clipa_eqx\.(\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), flags=re.M)
    assert sorted(shown) == sorted(set(dir(clipa_eqx)) - {"__version__"})


def test_each_page_is_in_the_navigation():
    named = re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.M)
    assert sorted(named) == sorted(path.name for path in DOCS.glob("*.md"))


def test_the_manual_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert "clipa_eqx.train" in page
    # An example outside an "Examples:" section becomes a quotation, in which Markdown takes each * as emphasis.
    assert "<blockquote>" not in page
    text = html.unescape(re.sub(r"<[^>]*>", "", page))
    assert 'lr_factors=(("image/.*", 0.1), (".*", 1.0))' in text
    assert 'id="clipa_eqx.Tokenizer.__call__"' in page
    assert "peak_lr: float,\n    weight_decay: float = 0.2," in text


def public_classes() -> list[type]:
    """Public dataclasses, modules and named tuples, those of ``clipa_eqx.surgery`` too."""
    found = [getattr(clipa_eqx, name) for name in dir(clipa_eqx)] + list(vars(clipa_eqx.surgery).values())
    own = {one for one in found if isinstance(one, type) and one.__module__.startswith("clipa_eqx")}
    return sorted((one for one in own if fields(one)), key=lambda one: one.__name__)


def fields(one: type) -> list[str]:
    if dataclasses.is_dataclass(one):
        return [field.name for field in dataclasses.fields(one)]
    return list(getattr(one, "_fields", ()))


@pytest.mark.parametrize("one", public_classes(), ids=lambda one: one.__name__)
def test_each_field_of_a_public_class_is_described(one):
    missing = [name for name in fields(one) if not re.search(rf"^ {{4}}{name}: ", inspect.getdoc(one), flags=re.M)]
    assert missing == []


@pytest.mark.parametrize(
    ("place", "values"),
    [
        (clipa_eqx.DataConfig, (*get_args(Reduction), *get_args(OnBadRecord))),
        (clipa_eqx.TrainTransform, get_args(Reduction)),
        (clipa_eqx.Tokenizer.__call__, get_args(Reduction)),
        (clipa_eqx.ModelTokenizer.__call__, get_args(Reduction)),
        (clipa_eqx.VisionConfig, get_args(ImagePool)),
        (clipa_eqx.TextConfig, get_args(TextPool)),
        (clipa_eqx.ZeroShotConfig, (*get_args(PromptSet), *get_args(ClassNameSet))),
        (clipa_eqx.train_stream, get_args(OnBadRecord)),
    ],
    ids=lambda one: getattr(one, "__qualname__", ""),
)
def test_the_allowed_values_are_listed(place, values):
    assert values
    assert [value for value in values if f'"{value}"' not in place.__doc__] == []


def test_the_presets_are_listed():
    source = (ROOT / "clipa_eqx" / "models" / "presets.py").read_text(encoding="utf-8")
    [listed] = re.findall(r'^They are ("[^\n]*)\.\n"""', source, flags=re.M)
    assert tuple(re.findall(r'"([^"]+)"', listed)) == clipa_eqx.PRESETS


def test_a_page_that_is_not_there_would_be_seen(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[gone](gone.md)\n")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"^nav:\n(?: .*\n)+|^plugins:\n(?:  .*\n)+", "", settings, flags=re.M))
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "gone.md" in done.stderr


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_no_page_names_a_path_that_is_not_there(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:clipa_eqx|conversion|scripts|benchmarks|configs|tests|docs)/[\w/.]*\w)`", text))
    real = (path for path in named if "FORMAT" not in path)
    assert sorted(path for path in real if not (ROOT / path).exists()) == []
