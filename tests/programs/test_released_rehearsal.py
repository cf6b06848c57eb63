"""The commands for a released model, on random weights of full size in its layout and images in ImageNet's layout."""

import json

import jax.random as jr
import numpy as np
import pytest
from support.commands_of_pages import commands_by_heading, run_in_process
from support.dumps import jpeg
from support.flax_checkpoints import write_npz
from support.imagenet_layouts import IDS, write

from clipa_eqx.evals.prompts import named_class_names
from clipa_eqx.models.clip import CLIP
from conversion.flax_clipa.names import to_flax
from conversion.weights.released import RELEASED

HEADING = "A released model, step by step"
DOCUMENTED = "l14-224px-t32-datacomp1b"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "limit", "reduction"), [(DOCUMENTED, 16, "truncate"), ("l14-84px-t8-datacomp1b", 1000, "syntax")]
)
def test_a_released_l14_from_its_file_to_its_score(name, limit, reduction, tmp_path):
    row = RELEASED[name]
    arrays = {f"params/{path}": np.asarray(leaf) for path, leaf in to_flax(random_model(row)).items()}
    write_npz(tmp_path / "SRC.npz", arrays)
    del arrays
    images = {f"val/{one}/ILSVRC2012_val_{i + 1:08d}.JPEG": jpeg(i, width=160, height=120) for i, one in enumerate(IDS)}
    write(tmp_path / "imagenet-folders", images)

    convert, verify, records, evaluate = [
        command.replace(DOCUMENTED, name) for command in commands_by_heading("published_sets.md")[HEADING]
    ]
    run_in_process(convert, folder=tmp_path)
    (tmp_path / "SRC.npz").unlink()
    shown = run_in_process(verify, folder=tmp_path)
    assert f"has the sizes of {name}, published at {row.score} %" in shown
    run_in_process(records, "--limit", limit, folder=tmp_path)
    # One prompt per class instead of 81, which take long on two cores.
    shown = run_in_process(evaluate, "--templates", "class_name_only", "--batch-size", 8, folder=tmp_path)

    result = json.loads((tmp_path / "l14-imagenet-val.json").read_text())
    assert (result["count"], result["class_count"], result["prompt_count"]) == (limit, 1000, 1000)
    assert result["correct_top1"] <= 3 + 0.004 * limit  # one in a thousand is chance
    assert result["settings"]["text_reduction"] == reduction
    passport = result["passport"]
    flags = passport["set"]["flags"]
    assert passport["set"]["name"] is None
    assert flags[0].startswith(
        f"not a published set: {limit:,} images of 1,000 classes; ImageNet validation has 50,000"
    )
    assert f"the conversion read only the first rows: --limit {limit}" in flags
    assert (passport["image"]["size"], passport["image"]["resize"]) == ([row.image_size] * 2, row.resize)
    assert (passport["image"]["mode"], passport["image"]["rounding"]) == ("exact", "truncate")
    assert passport["tokenizer"]["length"] == row.length
    assert passport["classes"]["count"] == len(named_class_names("imagenet"))
    for tower in ("image", "text"):
        blocks = passport["model"]["config"][tower]["blocks"]
        assert (blocks["norm_eps"], blocks["gelu"]) == (1e-6, "tanh")
    cut = passport["class_names_cut"]
    assert (cut["prompts"] == 0) == (row.length == 32)
    assert f"\nset: {flags[0]}\n" in shown
    assert f"\nclass names: complete in every prompt of {row.length} tokens" in shown


def random_model(row):
    """A model of this size in its initial state."""
    return CLIP.init(row.config(), key=jr.key(0))
