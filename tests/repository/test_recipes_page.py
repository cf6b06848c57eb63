"""The page docs/recipes.md: each published row has its chain of recipes, and the page is what its program writes."""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
from support.paths import ROOT

from clipa_eqx.config_files import apply_overrides
from clipa_eqx.durations import RunLength
from clipa_eqx.programs import train
from scripts.recipes_page import (
    CONFIGS,
    COSTS,
    FOLLOWS,
    LAION_400M,
    PAGE,
    chain_of,
    filled,
    longest_chains,
    published_rows,
    recipe,
    recipe_names,
)

# The rows of the reference's README, recorded independently of our table.
PUBLISHED = json.loads((ROOT / "tests" / "weights" / "released_models.json").read_text(encoding="utf-8"))["rows"]
NAMES = {"L/14": "L/14", "H/14": "H/14", "G/14": "bigG/14"}
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in re.findall(r"^python scripts/train\.py .*$", TEXT, re.MULTILINE)]
LABELS = ("Command", "Hardware", "Samples", "Hours", "Expect", "Table", "Differs")


def docstring(name: str) -> str:
    """The docstring of a recipe on one line."""
    return " ".join((ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text(encoding="utf-8"))) or "").split())


def section(name: str, label: str) -> str:
    """The text after a label of a docstring, up to the next one."""
    return re.split(r" (?:[A-Z][a-z]+): ", docstring(name).split(f" {label}: ")[1])[0]


def table_rows() -> list[list[str]]:
    """Cells of the table of published rows, without links and backticks."""
    table = TEXT.split("<!-- published-rows -->\n")[1].split("<!-- /published-rows -->")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    return [[re.sub(r"\]\(#.*\)|[`\[]", "", cell.strip()) for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_page_is_what_its_program_writes():
    assert filled(TEXT) == TEXT, "run python scripts/recipes_page.py"


def test_a_changed_cell_would_be_seen():
    for wrong in (TEXT.replace("12,247", "12,248"), TEXT.replace("195,490", "195,491")):
        assert wrong != TEXT
        assert filled(wrong) == TEXT


def test_each_published_row_is_in_the_table_with_its_score_and_costs():
    expected = [
        [
            {"pretrain": "pre-training", "finetune": "fine-tuning"}[row["stage"]],
            *(NAMES[row["model"]], row["data"], row["schedule"], str(row["imagenet_zero_shot_top1"])),
            *(f"{row[key]:,.0f}" if key in row else "not published" for key in ("a100_hours", "cost_usd")),
        ]
        for row in PUBLISHED
    ]
    # bigG/14 at 224 px has the score of the torch README too.
    shown = [[*cells[:4], cells[4].removesuffix(" %").split(" / ")[0], *cells[5:7]] for cells in table_rows()]
    assert len(expected) == 14
    assert shown == expected


def test_a_chain_has_a_recipe_for_each_part_of_a_schedule():
    parts_seen = set()
    for row, cells in zip(PUBLISHED, table_rows(), strict=True):
        stages, parts = cells[7].split(", "), row["schedule"].split(" + ")
        assert len(stages) == len(parts)
        for stage, part in zip(stages, parts, strict=True):
            amount, pixels = part.split("@")
            config = recipe(stage)
            assert stage.split("_")[0] == NAMES[row["model"]].lower().replace("/", "")
            assert config.model.image.image_size == (int(pixels),) * 2
            run = RunLength.of(config.duration, batch_size=config.batch_size)
            pairs = run.total_steps * config.batch_size
            # The tables write 524 and 131 million pairs as 512M and 128M: in units of 1024 * 1000.
            assert {"12.8B": 12_811_632_640, "512M": 512 * 1_024_000, "128M": 128 * 1_024_000}[amount] == pairs
            parts_seen.add(amount)
        assert config.model.text.length == row["text_tokens"]
    assert parts_seen == {"12.8B", "512M", "128M"}


@pytest.mark.parametrize("chain", longest_chains(), ids=lambda chain: chain.title)
def test_each_stage_of_a_chain_starts_from_the_one_before_and_trains_on_its_data(chain):
    before, length = None, 0
    for stage, command in zip(chain.stages, chain.commands, strict=True):
        words = shlex.split(command)
        assert words[:4] == ["python", "scripts/train.py", f"configs/{stage}.py", "--workdir"]
        flags = dict(zip(words[3::2], words[4::2], strict=True))
        run, start = flags.pop("--workdir"), flags.pop("--init-from", None)
        assert start == before
        config = apply_overrides(recipe(stage), [word for pair in flags.items() for word in pair])
        assert config.data.sources[0].folder == chain.folder
        assert (config.init is None) == (start is None)
        if config.init is not None:
            assert config.init.resize_text == (length != config.model.text.length)
        before, length = run, config.model.text.length
        assert f"\n{command}\n" in TEXT


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[2:5:2]))
def test_each_command_of_the_page_is_accepted(command, capsys, monkeypatch):
    """Printed by the program itself, without data and without the runs before."""
    monkeypatch.chdir(ROOT)
    assert train.main([*command[2:], "--print-config"]) == 0
    printed = json.loads(capsys.readouterr().out)
    flags = dict(zip(command[3::2], command[4::2], strict=True))
    assert printed["init"] is None or printed["init"]["source"] == flags.get("--init-from", printed["init"]["source"])
    assert printed["data"]["sources"][0]["folder"].startswith("data/")


def test_the_flags_for_the_shorter_fine_tuning_give_the_settings_of_its_file():
    """`model_h/unmask_tuning` of F5.1."""
    [command] = [command for command in COMMANDS if command[4].endswith("_short")]
    config = apply_overrides(recipe(Path(command[2]).stem), command[5:])
    run = RunLength.of(config.duration, batch_size=config.batch_size)
    [(_, schedule)] = config.optim.schedules
    assert (config.batch_size, run.total_steps, schedule.warmup.to_steps(run)) == (16_384, 8000, 1600)
    assert config.optim.peak_lr == pytest.approx(8e-7 * 16_384 / 256)
    assert (config.model.image.mask_ratio, config.model.image.pool, config.data.image.color) == (0.0, "gap", None)
    assert (config.optim.mu_dtype, config.eval_image.resize) == ("bfloat16", "squash")


def test_no_two_stages_of_different_chains_share_a_run_folder():
    runs = [run for chain in longest_chains() for run in chain.runs]
    assert len(runs) == len(set(runs)) == 15


def test_costs_are_those_of_rows_that_exist():
    assert set(COSTS) == {row.name for row in published_rows() if row.stage == "fine-tuning"}


@pytest.mark.parametrize("name", recipe_names())
def test_a_docstring_has_each_label(name):
    text = docstring(name)
    assert [label for label in LABELS if text.count(f" {label}: ") != 1] == []


@pytest.mark.parametrize("name", recipe_names())
def test_a_docstring_has_the_command_that_its_run_needs(name):
    assert section(name, "Command") == f"python scripts/train.py configs/{name}.py --workdir runs/{name}"


@pytest.mark.parametrize("name", recipe_names())
def test_a_docstring_has_the_samples_of_its_config(name):
    config = recipe(name)
    run = RunLength.of(config.duration, batch_size=config.batch_size, data_size=LAION_400M)
    samples = section(name, "Samples")
    assert samples.startswith(f"{run.total_steps * config.batch_size:,} pairs: ")
    assert f"{run.total_steps:,} steps of {config.batch_size:,}" in samples


@pytest.mark.parametrize("name", recipe_names())
def test_a_docstring_has_the_scores_and_hours_of_the_rows_that_end_with_it(name):
    rows = [row for row in published_rows() if chain_of(row).stages[-1] == name]
    stages = [row for row in published_rows() if name in chain_of(row).stages]
    table = section(name, "Table")
    assert (table == "none.") == (not stages)
    for row in stages:
        assert row.schedule in table
    for row in rows:
        assert row.data in table
        assert row.data in section(name, "Expect")
        for score in row.top1:
            assert f"{score} %" in section(name, "Expect")
        if row.name in COSTS:
            assert f"{COSTS[row.name][0]:,}" in section(name, "Hours")


@pytest.mark.parametrize("name", recipe_names())
def test_a_docstring_names_the_file_that_its_recipe_follows(name):
    differs = section(name, "Differs")
    assert ("The reference" in differs) == (name not in FOLLOWS)
    if name in FOLLOWS:
        branch, _, file = FOLLOWS[name].rpartition(" ")
        assert differs.startswith(f"from `{file}` ")
        assert differs.startswith(f"from `{file}` of the t5x branch ") == (branch == "t5x")


def test_all_files_that_are_followed_are_recipes():
    assert set(FOLLOWS) <= set(recipe_names())
    assert len(set(FOLLOWS.values())) == len(FOLLOWS)
