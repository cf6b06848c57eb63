"""Fewer blocks, one tower, a classifier: what stays computes what it computed before."""

import equinox as eqx
import jax
import numpy as np
import pytest
from support.leaves import assert_bit_equal
from support.random_clips import IMAGE, image_features, outputs, random_clip

from clipa_eqx import surgery
from clipa_eqx.errors import ConfigError
from clipa_eqx.trees import leaf_paths, leaves_by_path

DEEP = {"depth": 3}


@eqx.filter_jit
def logits(classified):
    return classified(IMAGE)


def without_effect(model, layer):
    """The same model with a block in each tower that adds nothing."""

    def last(m):
        towers = (m.image.blocks, m.text.blocks)
        return [leaf for b in towers for leaf in jax.tree.leaves((b.attn.out, b.mlp.fc_out))]

    return eqx.tree_at(last, model, [leaf.at[layer].set(0) for leaf in last(model)])


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_block_that_adds_nothing_can_be_pruned(layer):
    model = without_effect(random_clip(blocks=DEEP), layer)
    kept = [i for i in range(3) if i != layer]
    pruned, report = surgery.prune_depth(model, image=kept, text=kept)
    for found, expected in zip(outputs(pruned), outputs(model), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert pruned.config.image.blocks.depth == pruned.text.config.blocks.depth == 2
    assert {leaf.path for leaf in report.leaves} == {path for path in leaf_paths(model) if "/blocks/" in path}
    assert "image.blocks.depth: 3 -> 2" in str(report)
    surgery.validate(pruned)


def test_kept_blocks_are_those_named_and_the_other_tower_stays():
    model = random_clip(blocks=DEEP)
    pruned = surgery.prune_depth(model, text=(2,)).model
    for path, leaf in leaves_by_path(pruned).items():
        before = leaves_by_path(model)[path]
        np.testing.assert_array_equal(leaf, before[np.array([2])] if path.startswith("text/blocks/") else before)
    assert_bit_equal(pruned.image, model.image)
    twice = surgery.prune_depth(surgery.prune_depth(model, text=(0, 2)).model, text=(1,)).model
    assert_bit_equal(twice, pruned)


def test_all_blocks_are_the_same_model():
    model = random_clip()
    same, report = surgery.prune_depth(model, image=(0, 1), text=None)
    assert same is model
    assert report == surgery.SurgeryReport()


@pytest.mark.parametrize("kept", [(), (2,), (-1, 0), (1, 0), (0, 0)])
def test_numbers_that_are_no_blocks_are_refused(kept):
    with pytest.raises(ConfigError, match=r"prune_depth: text is .* from 0 to 1"):
        surgery.prune_depth(random_clip(), text=kept)


def test_a_tower_alone_is_that_of_the_model_bit_for_bit():
    model = random_clip()
    tower, report = surgery.take_tower(model, "text")
    assert_bit_equal(tower, model.text)
    assert {leaf.path for leaf in report.leaves} == {path for path in leaf_paths(model) if not path.startswith("text/")}
    assert all(leaf.after is None for leaf in report.leaves)


def test_a_tower_without_its_head_gives_features():
    model = random_clip()
    tower, report = surgery.take_tower(model, "image", head=False)
    np.testing.assert_array_equal(eqx.filter_jit(lambda one: one(IMAGE))(tower), image_features(model.image)[0])
    assert tower.config.output == 32
    assert "image/head/weight: removed, float32[16,32]" in map(str, report.leaves)
    with pytest.raises(ConfigError, match="image tower has no head"):
        surgery.take_tower(random_clip(image={"embed": None}, text={"embed": None}), "image", head=False)


@pytest.mark.parametrize("fields", [{}, {"bias": -10.0, "temperature": 10.0}])
def test_a_new_classifier_is_the_zero_shot_classifier(fields):
    model = random_clip(**fields)
    classes = np.linalg.qr(np.random.default_rng(2).normal(size=(16, 3)))[0].T.astype(np.float32)
    classified, report = surgery.add_classifier(model, classes)
    similarity = np.asarray(classes, np.float64) @ np.asarray(image_features(model.image)[1], np.float64)
    expected = np.exp(float(model.log_temperature)) * similarity + (0.0 if model.bias is None else float(model.bias))
    np.testing.assert_allclose(logits(classified), expected, rtol=0, atol=1e-5)
    kinds = {leaf.path: (leaf.before is None, leaf.after is None) for leaf in report.leaves}
    assert kinds["classifier/weight"] == kinds["classifier/bias"] == (True, False)
    assert kinds["text/token/weight"] == kinds["log_temperature"] == (False, True)
    assert not any(path.startswith("image/") for path in kinds)


@pytest.mark.parametrize("shape", [(0, 16), (3, 15)])
def test_class_embeddings_of_another_width_are_refused(shape):
    with pytest.raises(ConfigError, match=f"class embeddings are {shape[0]} x {shape[1]}.*width, 16"):
        surgery.add_classifier(random_clip(), np.zeros(shape, np.float32))
