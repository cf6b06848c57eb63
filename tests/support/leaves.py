"""Leaves of trees and files in tests: compare them one by one, edit some."""

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from clipa_eqx.trees import leaves_by_path


def as_numpy(tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_bit_equal(got, expected) -> None:
    """Both trees have the same structure, and all leaves the same bytes."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(as_numpy(got), as_numpy(expected), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def assert_same_leaves(got, expected, *, but=()) -> None:
    """Both trees have the same paths and values, whatever their static fields; the paths in ``but`` may differ."""
    got, expected = leaves_by_path(got), leaves_by_path(expected)
    assert got.keys() == expected.keys()
    for path, value in expected.items():
        if path not in but:
            np.testing.assert_array_equal(got[path], value, err_msg=path)


def edit_safetensors(file, change):
    """Rewrite a safetensors file after ``change`` has edited its dict of tensors; metadata are lost."""
    tensors = load_file(file)
    change(tensors)
    save_file({name: np.require(array, requirements="C") for name, array in tensors.items()}, file)
