"""README and docs: their Python runs, their commands and files exist, their tables are true."""

import argparse
import ast
import io
import json
import re
import shlex
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from support.embeddings import write_embeddings
from support.parameter_counts import PARAMETERS
from support.paths import ROOT
from support.tiny_models import tiny_clip, tiny_clip_config, tiny_tokenizer

from clipa_eqx.config_files import apply_overrides, load_config
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.durations import RunLength
from clipa_eqx.optim import OptimConfig, make_optimizer
from clipa_eqx.precision import Precision
from clipa_eqx.saved.model import save_model
from clipa_eqx.sharding import MeshConfig, make_mesh
from clipa_eqx.training.state import abstract_state
from clipa_eqx.training.step import make_train_step
from scripts.quickstart_figure import FIGURE, draw, read_scores

PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}


def text(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    found = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]
    inline = [one for page in PAGES for one in re.findall(r"`((?:python|make) [^`\n]+)`", text(page))]
    # Words in capitals are placeholders for the user's own names.
    return [shlex.split(line) for line in found + inline if not re.search(r"\b[A-Z]{3,}", line)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which the snippets run, with an image and two model folders."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)).save(file, "JPEG")
    (tmp_path / "cat.jpg").write_bytes(file.getvalue())
    size = EvalImageConfig(size=(16, 16))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "beach.jpg").write_bytes(file.getvalue())
    for model in ("runs/mine/model", "runs/tuned/model", "models/l14"):
        save_model(tmp_path / model, tiny_clip(), tokenizer=tiny_tokenizer(), preprocess=size, provenance={})
    # A model by name that was converted before.
    monkeypatch.setenv("CLIPA_EQX_CACHE", str(tmp_path / "cache"))
    converted = tmp_path / "cache" / "models" / "UCSC-VLAA--ViT-L-14-CLIPA-datacomp1B@main"
    save_model(converted, tiny_clip(), tokenizer=tiny_tokenizer(), preprocess=size, provenance={})
    write_embeddings(tmp_path / "embeddings", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_of_a_page_runs_from_top_to_bottom(page, folder, capsys):
    names = {"captions": ["a photo of a dog", "a photo of a cat", "a dog and a cat"]}
    for block in blocks(page, "python"):
        exec(compile(block, f"snippet of {page}", "exec"), names)
        for shown in re.findall(r"^print\(report\)  # (.*)$", block, flags=re.MULTILINE):
            assert shown in capsys.readouterr().out


def test_the_readme_computes_similarities_in_five_lines(folder):
    names = {}
    exec(blocks("README.md", "python")[0], names)
    assert len([line for line in blocks("README.md", "python")[0].splitlines() if line.strip()]) == 5
    assert names["similarity"].shape == (1, 2)
    for rows in (names["images"], names["texts"]):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)


def test_there_are_commands_to_check():
    programs = {command[1] for command in commands()}
    assert {"scripts/train.py", "scripts/show.py", "scripts/evaluate.py", "quickstart", "test"} <= programs


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_names_programs_flags_and_files_that_exist(command):
    if command[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert set(command[1:]) <= set(targets)
    elif command[1:3] == ["-m", "pip"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert set(re.findall(r"\[(.*)\]", command[-1])) <= set(project["optional-dependencies"])
    elif command[0] != "awk":
        _, program, *arguments = command
        if program == "-m":  # a command of conversion: its flags are in its folder, or shared by the weight formats
            folders = (ROOT / arguments.pop(0).replace(".", "/"), ROOT / "conversion" / "weights")
            assert (folders[0] / "__main__.py").is_file()
            files = [path for folder in folders for path in sorted(folder.glob("*.py"))]
        else:  # the thin files in scripts/ call the library's programs, which define the flags
            name = Path(program).stem
            homes = (f"clipa_eqx/programs/{name}.py", f"conversion/{name}/__main__.py")
            homes = (*(homes if program.startswith("scripts/") else ()), program)
            files = [next(ROOT / home for home in homes if (ROOT / home).exists())]
        source = "\n".join(path.read_text(encoding="utf-8") for path in files)
        if arguments and arguments[0].startswith("configs/"):
            parser = argparse.ArgumentParser(allow_abbrev=False)
            for flag, action in re.findall(r'add_argument\(\s*"(--[a-z-]+)"(.*store_true)?', source):
                parser.add_argument(flag, action="store_true" if action else "store")
            _, overrides = parser.parse_known_args(arguments[1:])
            apply_overrides(load_config(ROOT / arguments[0]), overrides)
        else:
            assert [flag for flag in arguments if flag.startswith("--") and f'"{flag}"' not in source] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_link_of_a_page_exists(page):
    for target in re.findall(r"\]\(([^)]+)\)", text(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert linked.is_file(), target
        headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
        anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, target
    for name in re.findall(
        r"\b(?:scripts|configs|benchmarks|docs|conversion|clipa_eqx)/[\w/]+\.(?:py|md)\b", text(page)
    ):
        assert (ROOT / name).is_file(), name


def test_the_table_of_contents_names_every_section():
    sections = re.findall(r"^## (.*)$", text("README.md"), flags=re.MULTILINE)
    contents = text("README.md").split("## Contents\n")[1].split("\n## ")[0]
    listed = re.findall(r"\[([^\]]*)\]\(#", contents)
    assert listed == sections[sections.index("Contents") + 1 :]


def test_the_figure_shows_the_numbers_of_the_table():
    assert text("README.md").count("](docs/figures/quickstart.svg)") == 1
    scores = read_scores(text("README.md"))
    assert [score.label for score in scores if score.label.startswith("seed ")] == ["seed 0", "seed 1", "seed 2"]
    assert FIGURE.read_text(encoding="utf-8") == draw(scores), "run python scripts/quickstart_figure.py"


def test_the_numbers_of_the_baseline_are_those_recorded():
    recorded = json.loads((ROOT / "docs" / "quickstart_baseline.json").read_text(encoding="utf-8"))
    [score] = [score for score in read_scores(text("README.md")) if "baseline" in score.label]
    assert (score.top1, score.top5) == (round(100 * recorded["top1"], 1), round(100 * recorded["top5"], 1))


def test_the_messages_that_the_manual_explains_are_in_the_code():
    """A changed message must be changed in the table of errors too; ``...`` is a value that the code fills in."""
    texts = {
        one
        for package in ("clipa_eqx", "conversion")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (one := literal(node)) is not None
    }
    rows = re.findall(r"^\| (`.*?) \| ", text("weights.md").split("## Errors")[1].split("\n## ")[0], flags=re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 10
    assert [message for message in messages if not any(message in one for one in texts)] == []


def literal(node: ast.AST) -> str | None:
    """The text of a string in the code, with ``...`` for each value that is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def test_all_pages_are_linked_from_the_readme():
    linked = set(re.findall(r"\((docs/\w+\.md)\)", text("README.md")))
    assert {f"docs/{page}" for page in PAGES if page != "README.md"} <= linked


def test_the_table_of_presets_is_true():
    rows = re.findall(r"^\| (\w+/\d+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", text("models.md"), flags=re.MULTILINE)
    assert {name: tuple(int(n.replace(",", "")) for n in counts) for name, *counts in rows} == PARAMETERS


def test_every_metric_of_a_step_is_explained():
    config = tiny_clip_config()
    optimizer = make_optimizer(OptimConfig(peak_lr=1e-3), tiny_clip(), RunLength(total_steps=4))
    abstract, mesh = abstract_state(config, optimizer), make_mesh(MeshConfig())
    batch = {
        "image": jax.ShapeDtypeStruct((8, 16, 16, 3), np.uint8),
        "tokens": jax.ShapeDtypeStruct((8, 8), np.int32),
    }
    with jax.set_mesh(mesh):
        step = make_train_step(optimizer, abstract=abstract, mesh=mesh, seed=0, precision=Precision())
        _, metrics = jax.eval_shape(step, abstract, batch)
    explained = set(re.findall(r"`([^`\s]+)`", text("training.md").split("## Metrics")[1]))
    for name in metrics:
        whole, *part = name.split("/", 1)
        assert whole in explained, name
        assert not part or f".../{part[0]}" in explained, name
