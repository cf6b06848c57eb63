"""Reports: every operation lists exactly the leaves that differ, with shapes, and gives a model that is valid."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from support.random_clips import random_clip
from support.tiny_models import PIECES, tiny_clip_config

from clipa_eqx import surgery
from clipa_eqx.errors import ClipaError
from clipa_eqx.surgery.report import LeafShape
from clipa_eqx.trees import leaves_by_path

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jr.key(4)
OTHER = {"image": {"position": "learned"}}
OPERATIONS = {
    "adopt": lambda m: surgery.adopt(
        m, m.config, fresh=random_clip(1, **OTHER), keep_initial=("image/blocks/1/.*", "text/head/weight")
    ),
    "average": lambda m: surgery.average([m, random_clip(1, **OTHER)]),
    "cast": lambda m: surgery.cast(m, "bfloat16"),
    "interpolate": lambda m: surgery.interpolate(m, random_clip(1, **OTHER), alpha=0.25),
    "learn_image_position": lambda m: surgery.learn_image_position(random_clip()),
    "prune_depth": lambda m: surgery.prune_depth(m, image=(1,)),
    "resize_image": lambda m: surgery.resize_image(m, image_size=(24, 16)),
    "resize_patch": lambda m: surgery.resize_patch(m, patch_size=(4, 8)),
    "resize_text": lambda m: surgery.resize_text(m, length=12, rows="first"),
    "swap_head": lambda m: surgery.swap_head(m, embed=5, key=KEY),
    "swap_vocabulary": lambda m: surgery.swap_vocabulary(m, old=PIECES, new=PIECES[:9], key=KEY),
    "with_config": lambda m: surgery.with_config(m, tiny_clip_config(image={**OTHER["image"], "mask_ratio": 0.5})),
    "with_pixel_statistics": lambda m: surgery.with_pixel_statistics(m, mean=(0.5,) * 3, std=(0.25,) * 3),
}


def shape(leaf):
    return None if leaf is None else LeafShape(leaf.shape, leaf.dtype.name)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_report_lists_exactly_the_leaves_that_differ(name):
    before = random_clip() if name == "learn_image_position" else random_clip(**OTHER)
    after, report = OPERATIONS[name](before)
    old, new = leaves_by_path(before), leaves_by_path(after)
    listed = {change.path: change for change in report.leaves}
    assert len(listed) == len(report.leaves)
    assert report.changes
    for path in {**old, **new}:
        a, b = old.get(path), new.get(path)
        if path in listed:
            assert (listed[path].before, listed[path].after) == (shape(a), shape(b))
        else:
            assert shape(a) == shape(b)
            np.testing.assert_array_equal(a, b, err_msg=path)
    surgery.validate(after)


def with_factors(model):
    return surgery.lora(model, rank=1, alpha=1.0, targets=("text/head/weight",), key=KEY).model


OF_FACTORS = {
    "merge": surgery.merge,
    "detach": surgery.detach,
}
OF_PLAIN = {name: operation for name, operation in OPERATIONS.items() if name != "learn_image_position"} | {
    "add_classifier": lambda m: surgery.add_classifier(m, np.eye(3, 16, dtype=np.float32)),
    "learn_image_position": surgery.learn_image_position,
    "lora": with_factors,
    "take_tower": lambda m: surgery.take_tower(m, "image"),
    "unmerge": lambda m: surgery.unmerge(m, surgery.detach(with_factors(random_clip(**OTHER)))[1]),
}


@pytest.mark.parametrize("name", [*OF_PLAIN, *OF_FACTORS])
def test_a_model_that_its_config_does_not_describe_is_not_the_result_of_any_operation(name):
    model = random_clip(**({} if name == "learn_image_position" else OTHER))
    model = with_factors(model) if name in OF_FACTORS else model
    broken = eqx.tree_at(lambda m: m.image.class_token, model, jnp.zeros(3))
    with pytest.raises(ClipaError, match="class_token"):
        (OF_PLAIN | OF_FACTORS)[name](broken)


def test_a_change_of_a_leaf_in_words():
    old, new = LeafShape((8, 32), "float32"), LeafShape((16, 32), "bfloat16")
    words = [
        str(surgery.LeafChange(path="text/position", before=a, after=b))
        for a, b in ((old, new), (None, new), (old, None), (old, old))
    ]
    assert words == [
        "text/position: float32[8,32] -> bfloat16[16,32]",
        "text/position: added, bfloat16[16,32]",
        "text/position: removed, float32[8,32]",
        "text/position: other values, float32[8,32]",
    ]
