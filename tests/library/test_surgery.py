"""Surgery: each function changes what it names and nothing else, reports it, and refuses what was not requested."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.leaves import assert_same_leaves
from support.random_clips import image_features, random_clip
from support.tiny_models import tiny_clip_config

from clipa_eqx import surgery
from clipa_eqx.data.images.host_pixels import IMAGENET_MEAN, IMAGENET_STD
from clipa_eqx.errors import CheckpointError, ConfigError
from clipa_eqx.trees import leaf_paths

LEARNED = {"position": "learned"}
PIXELS = (16, 16, 3)


@eqx.filter_jit
def embedding(model, pixels):
    return model.encode_image(pixels.astype(jnp.float32))


def linear(values, new):
    """Half-pixel-center linear interpolation with clamped edges, for growing only."""
    at = (np.arange(new) + 0.5) * len(values) / new - 0.5
    return np.stack([np.interp(at, np.arange(len(values)), column) for column in np.asarray(values).T], axis=1)


def test_resizing_to_the_same_size_changes_nothing():
    model = random_clip(image=LEARNED)
    for resized, report in (
        surgery.resize_text(model, length=8),
        surgery.resize_image(model, image_size=(16, 16)),
        surgery.resize_patch(model, patch_size=(8, 8)),
    ):
        assert resized is model
        assert report.changes == ()
        assert str(report) == "nothing changed"


def rising(shape, seed=0):
    """Random rows that rise along each axis, so that rows far away differ more than neighbors."""
    steps = np.random.default_rng(seed).uniform(0, 1, (len(shape), *shape, 32))
    return sum(np.cumsum(one, axis) for axis, one in enumerate(steps)).astype(np.float32)


def steps(rows, axis):
    """The largest difference of neighbors along an axis; 0 where there are none."""
    return np.abs(np.diff(rows, axis=axis)).max(initial=0.0)


@pytest.mark.parametrize("small", [3, 8])
def test_text_positions_that_shrink_and_grow_again_stay_near(small):
    check_texts(11, small, seed=0)


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(length=st.integers(2, 40), share=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_text_positions_of_every_length_that_shrink_and_grow_again_stay_near(length, share, seed):
    check_texts(length, max(1, round(share * length)), seed)


def check_texts(length, small, seed):
    """A shrunk row is an average of rows less than ``length / small`` away from its center, and a row that grew again
    is one of two shrunk rows whose centers are at most ``length / small`` away. So no value moves by more than
    ``2 * length / small`` steps between neighbors, and none leaves the range of the rows."""
    model = eqx.tree_at(
        lambda m: m.text.position, random_clip(text={"length": length}), jnp.asarray(rising((length,), seed))
    )
    shrunk = surgery.resize_text(model, length=small).model
    back = np.asarray(surgery.resize_text(shrunk, length=length).model.text.position)
    before = np.asarray(model.text.position)
    assert np.abs(back - before).max() <= 2 * length / small * steps(before, 0) + 1e-5
    assert back.max() <= before.max() + 1e-5
    assert back.min() >= before.min() - 1e-5


@pytest.mark.parametrize("small", [(16, 8), (24, 24)])
def test_image_positions_that_shrink_and_grow_again_stay_near(small):
    """The bound of texts holds in each direction, and the two add up; the class token's row stays, bit for bit."""
    model = random_clip(image=LEARNED | {"image_size": (32, 24), "patch_size": (4, 4)})
    table = np.concatenate([np.ones((1, 32), np.float32), rising((8, 6)).reshape(48, 32)])
    model = eqx.tree_at(lambda m: m.image.position, model, jnp.asarray(table))
    shrunk = surgery.resize_image(model, image_size=small).model
    back = np.asarray(surgery.resize_image(shrunk, image_size=(32, 24)).model.image.position)
    before = np.asarray(model.image.position)
    np.testing.assert_array_equal(back[0], before[0])
    grid = before[1:].reshape(8, 6, 32)
    bound = sum(2 * old / new * steps(grid, axis) for axis, (old, new) in enumerate(zip((32, 24), small, strict=True)))
    assert np.abs(back[1:].reshape(8, 6, 32) - grid).max() <= bound + 1e-5
    assert back.max() <= before.max() + 1e-5


@pytest.mark.parametrize("patch", ["conv", "linear"])
def test_a_model_of_other_pixel_statistics_acts_alike_on_pixels_of_imagenet(patch):
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    model = random_clip(image={"patch": patch})
    levels = np.random.default_rng(0).integers(0, 256, PIXELS).astype(np.float32) / 255
    theirs, ours = ((levels - np.array(m)) / np.array(s) for m, s in ((mean, std), (IMAGENET_MEAN, IMAGENET_STD)))
    changed, report = surgery.with_pixel_statistics(model, mean=mean, std=std)
    expected = embedding(model, theirs)
    np.testing.assert_allclose(embedding(changed, ours), expected, rtol=0, atol=2e-6)
    assert np.abs(embedding(model, ours) - expected).max() > 1e-3
    added = ("image.patch: 'conv' -> 'linear', for the bias",) if patch == "conv" else ()
    assert report.changes == (f"image/patch: pixels of mean {mean} and std {std}", *added)
    surgery.validate(changed)
    with pytest.raises(ConfigError, match="three positive stds"):
        surgery.with_pixel_statistics(model, mean=mean, std=(0.2, 0.0, 0.2))


def test_learned_text_positions_are_interpolated_between_token_centers():
    model = random_clip()
    resized, report = surgery.resize_text(model, length=32)
    np.testing.assert_allclose(resized.text.position, linear(model.text.position, 32), atol=1e-7)
    assert_same_leaves(resized, model, but=("text/position",))
    assert resized.config.text.length == resized.text.config.length == 32
    assert "8 rows resampled to 32" in str(report)
    assert jax.eval_shape(resized.encode_text, jnp.zeros(32, jnp.int32)).shape == (16,)


@pytest.mark.parametrize("length", [3, 13])
def test_the_first_rows_of_learned_text_positions_are_kept_on_request(length):
    model = random_clip()
    resized, report = surgery.resize_text(model, length=length, rows="first")
    before, after = np.asarray(model.text.position), np.asarray(resized.text.position)
    assert after.shape == (length, 32)
    np.testing.assert_array_equal(after[:8], before[:length])
    np.testing.assert_array_equal(after[8:], np.tile(before[7], (max(0, length - 8), 1)))
    assert_same_leaves(resized, model, but=("text/position",))
    assert f"first {min(length, 8)} of 8 rows kept, {length} in all" in str(report)
    target = tiny_clip_config(text={"length": length})
    adopted = surgery.adopt(
        model, target, fresh=random_clip(1, text={"length": length}), resize_text=True, text_rows="first"
    )
    assert_same_leaves(adopted.model, resized)


def test_computed_positions_need_a_new_config_only():
    model = random_clip(text={"position": "sincos1d"})
    longer = surgery.resize_text(model, length=12).model
    larger = surgery.resize_image(longer, image_size=(24, 32)).model
    assert_same_leaves(larger, model)
    assert larger.image.config.image_size == (24, 32)
    assert jax.eval_shape(larger.encode_image, jnp.ones((24, 32, 3))).shape == (16,)
    surgery.validate(larger)


def test_learned_image_positions_keep_the_class_token_and_resample_the_grid_in_two_dimensions():
    model = random_clip(image={"position": "learned", "patch_size": (4, 4)})  # a grid of 4 x 4
    resized = surgery.resize_image(model, image_size=(32, 24)).model
    before, after = model.image.position, np.asarray(resized.image.position)
    np.testing.assert_array_equal(after[0], before[0])
    grid = np.asarray(before[1:]).reshape(4, 4, 32)
    rows = np.stack([linear(grid[:, x], 8) for x in range(4)], axis=1)
    expected = np.stack([linear(row, 6) for row in rows])
    np.testing.assert_allclose(after[1:].reshape(8, 6, 32), expected, atol=1e-6)
    assert jax.eval_shape(resized.encode_image, jnp.ones((32, 24, 3))).shape == (16,)


def test_learning_the_image_position_keeps_the_function():
    model = random_clip()
    learned, report = surgery.learn_image_position(model)
    for after, before in zip(image_features(learned.image), image_features(model.image), strict=True):
        np.testing.assert_array_equal(after, before)
    assert "image/position" in leaf_paths(learned)
    assert "image/position" in str(report)
    surgery.validate(learned)
    assert surgery.learn_image_position(learned).model is learned


def test_with_config_changes_static_fields_everywhere():
    model = random_clip()
    blocks = dataclasses.replace(model.config.image.blocks, dropout=0.1, norm_eps=1e-5, gelu="exact")
    config = tiny_clip_config(image={"blocks": blocks, "mask_ratio": 0.5})
    changed, report = surgery.with_config(model, config)
    assert changed.config == config
    assert changed.image.config == config.image
    assert changed.image.norm.eps == changed.image.blocks.norm1.eps == 1e-5
    assert changed.image.blocks.mlp.gelu == "exact"
    assert "image.mask_ratio: 0.0 -> 0.5" in report.changes
    assert_same_leaves(changed, model)
    surgery.validate(changed)


def test_with_config_lists_the_leaves_that_differ():
    config = tiny_clip_config(image=LEARNED, text={"length": 9})
    with pytest.raises(ConfigError, match=r"(?s)image/position \(5, 32\): missing.*text/position: \(8, 32\) found"):
        surgery.with_config(random_clip(), config)


def test_validate_finds_changes_by_hand():
    model = random_clip()
    surgery.validate(model)
    with pytest.raises(ConfigError, match="image/class_token"):
        surgery.validate(eqx.tree_at(lambda m: m.image.class_token, model, jnp.zeros(3)))
    longer = dataclasses.replace(model.config.image, mask_ratio=0.5)
    with pytest.raises(ConfigError, match="static fields"):
        surgery.validate(eqx.tree_at(lambda m: m.image, model, dataclasses.replace(model.image, config=longer)))


def test_unstacked_blocks_are_the_layers_by_path():
    model = random_clip()
    found = surgery.unstack_blocks(model)
    np.testing.assert_array_equal(found["image/blocks/1/attn/q/weight"], model.image.blocks.attn.q.weight[1])
    assert "image/blocks/attn/q/weight" not in found
    assert found["log_temperature"].shape == ()
    assert sum(leaf.size for leaf in found.values()) == sum(leaf.size for leaf in jax.tree.leaves(model))


def test_adopting_the_same_architecture_takes_every_leaf():
    source, fresh = random_clip(0), random_clip(1)
    adopted, report = surgery.adopt(source, fresh.config, fresh=fresh)
    assert_same_leaves(adopted, source)
    assert report.changes == ()


def test_rates_masking_and_computed_sizes_may_differ_without_a_request():
    source = random_clip(text={"position": "sincos1d"})
    blocks = dataclasses.replace(source.config.image.blocks, drop_path=0.2, remat="full")
    target = tiny_clip_config(
        image={"blocks": blocks, "mask_ratio": 0.5, "image_size": (32, 32)},
        text={"position": "sincos1d", "length": 12},
        temperature=20.0,
    )
    adopted, report = surgery.adopt(source, target, fresh=random_clip(1, **_fields(target)))
    assert_same_leaves(adopted, source)
    assert adopted.config == target
    surgery.validate(adopted)
    assert "text.length: 8 -> 12" in report.changes
    assert "image.blocks.drop_path: 0.0 -> 0.2" in report.changes


def test_learned_positions_are_resampled_only_on_request():
    source = random_clip(image=LEARNED)
    target = tiny_clip_config(image=LEARNED | {"image_size": (32, 32)}, text={"length": 12})
    fresh = random_clip(1, **_fields(target))
    with pytest.raises(CheckpointError, match=r"(?s)image/position.*resize_image.*text/position.*resize_text"):
        surgery.adopt(source, target, fresh=fresh)
    adopted = surgery.adopt(source, target, fresh=fresh, resize_text=True, resize_image=True).model
    by_hand = surgery.resize_image(surgery.resize_text(source, length=12).model, image_size=(32, 32)).model
    assert_same_leaves(adopted, by_hand)


def test_a_new_head_and_patch_stay_random_on_request():
    source = random_clip()
    target = tiny_clip_config(image={"embed": 6, "patch_size": (4, 4)}, text={"embed": 6})
    fresh = random_clip(1, **_fields(target))
    with pytest.raises(CheckpointError, match=r"(?s)image/patch/weight.*image/head/weight.*text/head/weight"):
        surgery.adopt(source, target, fresh=fresh)
    adopted, report = surgery.adopt(source, target, fresh=fresh, keep_initial=(".*/head/weight", "image/patch/.*"))
    np.testing.assert_array_equal(adopted.image.head.weight, fresh.image.head.weight)
    np.testing.assert_array_equal(adopted.image.patch.weight, fresh.image.patch.weight)
    np.testing.assert_array_equal(adopted.text.token.weight, source.text.token.weight)
    assert "text/head/weight: random, kept as initialized" in report.changes


def test_single_layers_may_stay_random():
    source, fresh = random_clip(0), random_clip(1)
    adopted = surgery.adopt(source, fresh.config, fresh=fresh, keep_initial=("image/blocks/1/.*",)).model
    weights = [m.image.blocks.attn.q.weight for m in (adopted, source, fresh)]
    np.testing.assert_array_equal(weights[0][0], weights[1][0])
    np.testing.assert_array_equal(weights[0][1], weights[2][1])


def test_a_pattern_that_keeps_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"init.keep_initial.*img/head"):
        surgery.adopt(random_clip(), tiny_clip_config(), fresh=random_clip(1), keep_initial=("img/head/.*",))


def test_a_config_that_changes_the_outputs_of_equal_leaves_is_refused():
    blocks = dataclasses.replace(tiny_clip_config().image.blocks, heads=4, norm_eps=1e-5)
    target = tiny_clip_config(image={"blocks": blocks, "pool": "tok"})
    with pytest.raises(CheckpointError) as caught:
        surgery.adopt(random_clip(), target, fresh=random_clip(1, **_fields(target)))
    for name in ("image.blocks.heads: 2 found, 4 wanted", "image.blocks.norm_eps", "image.pool: 'gap'"):
        assert name in str(caught.value)


def test_surplus_leaves_are_refused():
    with pytest.raises(CheckpointError, match=r"image/position \(5, 32\): present, not wanted"):
        surgery.adopt(random_clip(image=LEARNED), tiny_clip_config(), fresh=random_clip(1))


def _fields(config):
    tower = [{f.name: getattr(part, f.name) for f in dataclasses.fields(part)} for part in (config.image, config.text)]
    return {"image": tower[0], "text": tower[1], "temperature": config.temperature}
