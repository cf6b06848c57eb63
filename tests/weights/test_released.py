"""The table of released models: published rows, parameter counts, scores, and its printed and documented forms."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.trees import count_params
from conversion.released.__main__ import main
from conversion.weights.released import CHECKED, RELEASED, markdown_table

# The rows of the reference's README, recorded independently of our table.
PUBLISHED = json.loads((Path(__file__).parent / "released_models.json").read_text())["rows"]
ARCHITECTURE = {"L/14": "L/14", "H/14": "H/14", "G/14": "bigG/14"}

# docs/reference.md F2.6, and open_clip's model_profile.csv in millions, which counts the image positions too.
COUNTS = {"L/14": 413_947_393, "H/14": 967_906_049, "bigG/14": 2_516_796_289}
STORED = {
    ("L/14", 224): 414.21,
    ("L/14", 336): 414.54,
    ("H/14", 224): 968.24,
    ("H/14", 336): 968.64,
    ("bigG/14", 224): 2517.22,
    ("bigG/14", 336): 2517.76,
}
OPEN_CLIP = {  # docs/reference.md F4.2
    "ViT-L-14-CLIPA-datacomp1B": 79.57,
    "ViT-L-14-CLIPA-336-datacomp1B": 80.26,
    "ViT-H-14-CLIPA-datacomp1B": 81.52,
    "ViT-H-14-CLIPA-336-datacomp1B": 81.80,
    "ViT-H-14-CLIPA-336-laion2B": 79.10,
    "ViT-bigG-14-CLIPA-datacomp1B": 82.70,
    "ViT-bigG-14-CLIPA-336-datacomp1B": 83.09,
}


def key(row):
    return (row["model"], row["resolution"], row["text_tokens"], row["data"], row["schedule"])


def test_every_published_flax_row_is_in_the_table_once():
    ours = {(r.preset, r.image_size, r.length, r.data, r.schedule): r for r in RELEASED.values() if r.profile == "flax"}
    assert len(ours) == len(PUBLISHED) == 14
    for row in PUBLISHED:
        model, *rest = key(row)
        mine = ours[ARCHITECTURE[model], *rest]
        assert mine.top1[0] == row["imagenet_zero_shot_top1"]
        assert row["flax_weights"].split("?")[0].removesuffix("/view") == mine.url
        assert mine.stage == {"pretrain": "pre-training", "finetune": "fine-tuning"}[row["stage"]]


def test_every_open_clip_repository_is_in_the_table_once():
    ours = {r.url: r for r in RELEASED.values() if r.profile == "open_clip"}
    assert {url.removeprefix("hf-hub:UCSC-VLAA/"): r.top1[0] for url, r in ours.items()} == OPEN_CLIP
    for row in PUBLISHED:
        if "open_clip_repo" in row:
            mine = ours["hf-hub:" + row["open_clip_repo"]]
            assert (mine.preset, *key(row)[1:]) == (
                ARCHITECTURE[row["model"]],
                mine.image_size,
                mine.length,
                mine.data,
                mine.schedule,
            )


def test_the_score_on_which_the_texts_disagree_has_both():
    assert RELEASED["bigg14-224px-t32-datacomp1b"].top1 == (82.5, 82.7)
    assert [r.name for r in RELEASED.values() if len(r.top1) > 1] == ["bigg14-224px-t32-datacomp1b"]


@pytest.mark.parametrize("row", RELEASED.values(), ids=lambda row: row.name)
def test_the_parameters_of_a_row_are_those_of_its_config(row):
    config = row.config()
    model = abstract_clip(config)
    assert count_params(model) == row.parameters
    assert row.parameters == COUNTS[row.preset] - (32 - row.length) * config.text.blocks.width
    assert (config.image.image_size, config.text.length) == ((row.image_size,) * 2, row.length)
    assert row.preprocess().size == config.image.image_size
    for blocks in (config.image.blocks, config.text.blocks):
        expected = {"flax": (1e-6, "tanh"), "open_clip": (1e-5, "exact")}[row.profile]
        assert (blocks.norm_eps, blocks.gelu) == expected
    if row.profile == "open_clip":
        assert round(row.stored / 1e6, 2) == STORED[row.preset, row.image_size]
    else:
        assert row.stored == row.parameters


def test_the_table_is_printed_without_jax():
    code = "import sys, conversion.released.__main__ as r; r.main([]); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "False"
    assert [line.split()[0] for line in lines[1 : 1 + len(RELEASED)]] == list(RELEASED)


def test_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"^unrecognized arguments: h14; --help lists the arguments$"):
        main(["h14"])


def test_the_manual_has_the_table_between_its_markers():
    text = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    begin, end = "<!-- released-table -->\n", "<!-- /released-table -->"
    assert begin in text, "docs/weights.md lacks the marker <!-- released-table -->"
    table = text.split(begin)[1].split(end)[0]
    assert table == markdown_table()
    assert [row.split("`")[1] for row in table.splitlines() if row.startswith("| `")] == list(RELEASED)


def test_what_was_checked_is_said_once_for_all_rows():
    assert markdown_table().count(CHECKED) == 1
    assert "not run" in CHECKED
