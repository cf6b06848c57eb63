"""Fewer blocks, one tower, a classifier: what stays computes what it computed before."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from support.leaves import assert_bit_equal
from support.tiny_models import tiny_clip

from clipa_eqx import surgery
from clipa_eqx.errors import ConfigError
from clipa_eqx.trees import leaf_paths, leaves_by_path

IMAGE = jr.normal(jr.key(1), (16, 16, 3))
TOKENS = jnp.arange(8)
DEEP = {"depth": 4}


def outputs(model):
    return model.encode_image(IMAGE), model.encode_text(TOKENS)


def without_effect(model, layer):
    """The same model with a block in each tower that adds nothing."""

    def last(m):
        towers = (m.image.blocks, m.text.blocks)
        return [leaf for b in towers for leaf in jax.tree.leaves((b.attn.out, b.mlp.fc_out))]

    return eqx.tree_at(last, model, [leaf.at[layer].set(0) for leaf in last(model)])


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_block_that_adds_nothing_can_be_pruned(layer):
    model = without_effect(tiny_clip(blocks=DEEP), layer)
    kept = [i for i in range(4) if i != layer]
    pruned, report = surgery.prune_depth(model, image=kept, text=kept)
    for found, expected in zip(outputs(pruned), outputs(model), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert pruned.config.image.blocks.depth == pruned.text.config.blocks.depth == 3
    assert {leaf.path for leaf in report.leaves} == {path for path in leaf_paths(model) if "/blocks/" in path}
    assert "image.blocks.depth: 4 -> 3" in str(report)
    surgery.validate(pruned)


def test_kept_blocks_are_those_named_and_the_other_tower_stays():
    model = tiny_clip(blocks=DEEP)
    pruned = surgery.prune_depth(model, text=(1, 3)).model
    for path, leaf in leaves_by_path(pruned).items():
        before = leaves_by_path(model)[path]
        np.testing.assert_array_equal(leaf, before[np.array([1, 3])] if path.startswith("text/blocks/") else before)
    assert_bit_equal(pruned.image, model.image)
    twice = surgery.prune_depth(surgery.prune_depth(model, text=(0, 1, 3)).model, text=(1, 2)).model
    assert_bit_equal(twice, pruned)


def test_all_blocks_are_the_same_model():
    model = tiny_clip()
    same, report = surgery.prune_depth(model, image=(0, 1), text=None)
    assert same is model
    assert report == surgery.SurgeryReport()


@pytest.mark.parametrize("kept", [(), (2,), (-1, 0), (1, 0), (0, 0)])
def test_numbers_that_are_no_blocks_are_refused(kept):
    with pytest.raises(ConfigError, match=r"prune_depth: text is .* from 0 to 1"):
        surgery.prune_depth(tiny_clip(), text=kept)


def test_a_tower_computes_alone_what_it_computed_in_the_model():
    model = tiny_clip()
    tower, report = surgery.take_tower(model, "text")
    np.testing.assert_array_equal(tower(TOKENS), model.text(TOKENS))
    assert {leaf.path for leaf in report.leaves} == {path for path in leaf_paths(model) if not path.startswith("text/")}
    assert all(leaf.after is None for leaf in report.leaves)


def test_a_tower_without_its_head_gives_features():
    model = tiny_clip()
    tower, report = surgery.take_tower(model, "image", head=False)
    np.testing.assert_array_equal(tower(IMAGE), model.image.trace(IMAGE).head_input)
    assert tower.config.output == 32
    assert "image/head/weight: removed, float32[16,32]" in map(str, report.leaves)
    with pytest.raises(ConfigError, match="image tower has no head"):
        surgery.take_tower(tiny_clip(image={"embed": None}, text={"embed": None}), "image", head=False)


@pytest.mark.parametrize("fields", [{}, {"bias": -10.0, "temperature": 10.0}])
def test_a_new_classifier_is_the_zero_shot_classifier(fields):
    model = tiny_clip(**fields)
    classes = jax.vmap(model.encode_text)(jnp.arange(24).reshape(3, 8))
    classified, report = surgery.add_classifier(model, classes)
    similarity = np.asarray(classes, np.float64) @ np.asarray(model.encode_image(IMAGE), np.float64)
    expected = np.exp(float(model.log_temperature)) * similarity + fields.get("bias", 0.0)
    np.testing.assert_allclose(classified(IMAGE), expected, rtol=0, atol=1e-5)
    kinds = {leaf.path: (leaf.before is None, leaf.after is None) for leaf in report.leaves}
    assert kinds["classifier/weight"] == kinds["classifier/bias"] == (True, False)
    assert kinds["text/token/weight"] == kinds["log_temperature"] == (False, True)
    assert not any(path.startswith("image/") for path in kinds)


@pytest.mark.parametrize("shape", [(0, 16), (3, 15)])
def test_class_embeddings_of_another_width_are_refused(shape):
    with pytest.raises(ConfigError, match=f"class embeddings are {shape[0]} x {shape[1]}.*width, 16"):
        surgery.add_classifier(tiny_clip(), np.zeros(shape, np.float32))
