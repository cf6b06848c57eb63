"""Another patch size: FlexiViT's definition, what a grown patch sees, and positions that follow."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.leaves import assert_bit_equal, assert_same_leaves
from support.random_clips import IMAGE, random_clip

from clipa_eqx import surgery
from clipa_eqx.errors import ConfigError

pytestmark = pytest.mark.usefixtures("quick_compile")

SIDES = st.integers(1, 6)


def resizing(old, new):
    """The matrix of resizing a patch, one column for each pixel, by interpolation in one direction after the other."""

    def lines(values, size):
        at = (np.arange(size) + 0.5) * len(values) / size - 0.5
        return np.stack([np.interp(at, np.arange(len(values)), column) for column in values.T], axis=1)

    units = np.eye(old[0] * old[1]).reshape(-1, *old)
    return np.stack([lines(lines(unit, new[0]).T, new[1]).T.ravel() for unit in units], axis=1)


def patches_of(size, *, seed=0):
    """A tiny model with patches of ``size``, its image two patches wide and high, with a random float64 kernel."""
    model = random_clip(image={"patch_size": size, "image_size": (2 * size[0], 2 * size[1])})
    kernel = np.random.default_rng(seed).normal(size=(32, size[0] * size[1] * 3))
    return eqx.tree_at(lambda m: m.image.patch.weight, model, jnp.asarray(kernel))


def resized(model, new, **options):
    return surgery.resize_patch(model, patch_size=new, image_size=(2 * new[0], 2 * new[1]), **options)


@pytest.mark.parametrize(("old", "new"), [((2, 3), (4, 5)), ((4, 3), (3, 6))])
def test_kernels_are_those_of_the_definition(old, new):
    check_kernels(old, new, seed=0)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(old=st.tuples(SIDES, SIDES), new=st.tuples(SIDES, SIDES), seed=st.integers(0, 99))
def test_kernels_of_all_sizes_are_those_of_the_definition(old, new, seed):
    check_kernels(old, new, seed)


def check_kernels(old, new, seed):
    with jax.enable_x64(True):
        model = patches_of(old, seed=seed)
        weight = np.asarray(model.image.patch.weight)
        matrix = resizing(old, new)
        for method, expected in {"pseudo-inverse": np.linalg.pinv(matrix.T), "bilinear": matrix}.items():
            found = np.asarray(resized(model, new, method=method).model.image.patch.weight)
            assert found.dtype == np.float64
            kernel = np.einsum("no,doc->dnc", expected, weight.reshape(32, -1, 3))
            np.testing.assert_allclose(found, kernel.reshape(32, -1), rtol=0, atol=1e-10)


def test_a_grown_kernel_sees_a_grown_patch_as_the_old_kernel_saw_the_patch():
    check_grown((2, 3), (4, 5), seed=0)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(old=st.tuples(SIDES, SIDES), more=st.tuples(st.integers(0, 4), st.integers(0, 4)), seed=st.integers(0, 99))
def test_kernels_grown_by_any_number_of_pixels_see_the_same(old, more, seed):
    check_grown(old, (old[0] + more[0], old[1] + more[1]), seed)


def check_grown(old, new, seed):
    with jax.enable_x64(True):
        model = patches_of(old, seed=seed)
        grown = resized(model, new).model
        patch = np.random.default_rng(seed).normal(size=(old[0] * old[1], 3))
        seen = np.asarray(grown.image.patch(jnp.asarray((resizing(old, new) @ patch).ravel())))
        np.testing.assert_allclose(seen, model.image.patch(jnp.asarray(patch.ravel())), rtol=0, atol=1e-10)


@pytest.mark.parametrize("position", ["learned", "sincos2d"])
def test_the_grid_follows_the_patches(position):
    model = random_clip(image={"position": position})
    small, report = surgery.resize_patch(model, patch_size=(4, 8))
    assert small.config.image.grid == small.image.config.grid == (4, 2)
    assert jax.eval_shape(small.encode_image, IMAGE).shape == (16,)
    changed = {"image/patch/weight", *(("image/position",) if position == "learned" else ())}
    assert {leaf.path for leaf in report.leaves} == changed
    assert "image/patch/weight: float32[32,192] -> float32[32,96]" in map(str, report.leaves)
    assert "image.patch_size: (8, 8) -> (4, 8)" in report.changes
    if position == "learned":
        grid = surgery.resize_image(model, image_size=(32, 16)).model
        np.testing.assert_array_equal(small.image.position, grid.image.position)
    surgery.validate(small)


def test_the_same_patches_are_the_same_model_and_other_leaves_stay():
    model = random_clip()
    same, report = surgery.resize_patch(model, patch_size=(8, 8))
    assert same is model
    assert report == surgery.SurgeryReport()
    changed = surgery.resize_patch(model, patch_size=(4, 4), image_size=(8, 8)).model
    assert changed.config.image.grid == (2, 2)
    rest = dataclasses.replace(changed.image, patch=model.image.patch)
    assert_same_leaves(dataclasses.replace(changed, image=rest), model)
    assert_bit_equal(changed.text, model.text)


def test_patches_that_do_not_divide_the_image_are_refused():
    with pytest.raises(ConfigError, match="image width 16 is not a positive multiple of patch width 5"):
        surgery.resize_patch(random_clip(), patch_size=(8, 5))
