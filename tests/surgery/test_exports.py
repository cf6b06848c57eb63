"""Surgery, export, import equals surgery: changed models leave as checkpoints of others and come back bit for bit."""

import jax.random as jr
import pytest
from support import flax_checkpoints, open_clip_folders
from support.leaves import assert_same_leaves
from support.random_clips import random_clip
from support.tiny_models import PIECES

from clipa_eqx import surgery
from clipa_eqx.saved.model import load_model
from conversion.flax_clipa.__main__ import main as flax
from conversion.open_clip.__main__ import main as open_clip

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile")]

LEARNED = {"image": {"position": "learned"}}


def adapted(model):
    with_factors = surgery.lora(model, rank=2, alpha=4.0, targets=(".*/attn/(q|v)/weight",), key=jr.key(1)).model
    return surgery.merge(with_factors)


OPERATIONS = {
    "resize_text": lambda m: surgery.resize_text(m, length=12),
    "resize_image": lambda m: surgery.resize_image(m, image_size=(32, 16)),
    "resize_patch": lambda m: surgery.resize_patch(m, patch_size=(4, 4)),
    "learn_image_position": lambda m: surgery.learn_image_position(random_clip()),
    "swap_head": lambda m: surgery.swap_head(m, embed=5, key=jr.key(2)),
    "swap_vocabulary": lambda m: surgery.swap_vocabulary(m, old=PIECES, new=PIECES[::-1], key=jr.key(3)),
    "interpolate": lambda m: surgery.interpolate(m, random_clip(1, **LEARNED), alpha=0.5),
    "average": lambda m: surgery.average([m, random_clip(1, **LEARNED), random_clip(2, **LEARNED)]),
    "prune_depth": lambda m: surgery.prune_depth(m, image=(1,), text=(0,)),
    "lora, merged": adapted,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_flax_checkpoint_of_a_changed_model_comes_back_as_that_model(name, tmp_path):
    model = OPERATIONS[name](random_clip(**LEARNED)).model
    open_clip_folders.save(tmp_path / "model", model)
    flax(["export", str(tmp_path / "model"), str(tmp_path / "x.npz")])
    back = load_model(flax_checkpoints.convert(tmp_path / "x.npz", tmp_path / "back", config=model.config)).model
    assert back.config == model.config
    assert_same_leaves(back, model)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_open_clip_folder_of_a_changed_model_comes_back_as_that_model(name, tmp_path):
    model = OPERATIONS[name](random_clip(**LEARNED)).model
    open_clip_folders.save(tmp_path / "model", model)
    if name == "learn_image_position":
        model = random_clip()  # an import knows the computed table again, and needs no leaf for it
    open_clip(["export", str(tmp_path / "model"), str(tmp_path / "theirs")])
    back = open_clip_folders.convert(tmp_path / "theirs", tmp_path / "back").model
    assert open_clip_folders.same_config(back.config) == open_clip_folders.same_config(model.config)
    assert_same_leaves(back, model)
