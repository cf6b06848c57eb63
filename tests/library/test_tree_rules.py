"""Rules over paths for any tree and any order: the decision equals a loop over leaves and layers."""

import re

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa_eqx.trees import (
    count_params,
    from_leaves,
    layer_path,
    leaf_paths,
    leaves_by_path,
    map_with_path,
    match_by_path,
    stacked_depth,
)

NAMES = st.sampled_from(["a", "b", "blocks", "weight", "bias"])
LEAVES = st.lists(st.integers(1, 3), max_size=3).map(lambda shape: np.zeros(shape, np.float32))
TREES = st.dictionaries(
    NAMES, st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=6), max_size=3
)
# The last one matches stacked leaves but none of their layers.
PATTERNS = st.sampled_from(
    ["a/.*", ".*/weight", "a/blocks/0/.*", ".*blocks/[12]/.*", "blocks/.*", "a", "b/a/.*", "(.*/)?blocks/[a-z/]+"]
)
RULES = st.lists(st.tuples(PATTERNS, st.integers(0, 2)), max_size=4)
quick = settings(max_examples=60, deadline=None)


@quick
@given(TREES)
def test_leaves_by_path_and_back_is_the_same_tree(tree):
    leaves = leaves_by_path(tree)
    again = from_leaves(tree, leaves)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True))
    assert list(leaves) == leaf_paths(tree)
    assert count_params(tree) == sum(leaf.size for leaf in leaves.values())


@quick
@given(TREES)
def test_mapping_with_path_calls_each_leaf_with_its_own_path(tree):
    called = []
    map_with_path(lambda path, leaf: called.append((path, id(leaf))), tree)
    assert called == [(path, id(leaf)) for path, leaf in leaves_by_path(tree).items()]


@quick
@given(TREES, RULES)
def test_the_first_rule_that_matches_a_leaf_or_a_layer_decides_it(tree, rules):
    rules = [*rules, (".*", -1)]
    decided = match_by_path(rules, tree, what="x", unused="allow")
    for path, leaf in leaves_by_path(tree).items():
        depth = stacked_depth(path, leaf)
        if depth is None:
            assert decided[path] == first(rules, [path])
        else:
            each = [first(rules, [path, layer_path(path, layer)]) for layer in range(depth)]
            assert decided[path] == (each[0] if len(set(each)) == 1 else tuple(each))


def first(rules, names):
    return next(value for pattern, value in rules if any(re.fullmatch(pattern, name) for name in names))


@quick
@given(TREES)
def test_exactly_the_leaves_under_blocks_with_a_first_axis_have_layers(tree):
    for path, leaf in leaves_by_path(tree).items():
        depth = stacked_depth(path, leaf)
        is_under_blocks = "blocks" in path.split("/")[:-1]
        assert depth == (leaf.shape[0] if is_under_blocks and leaf.ndim else None)
        if depth is not None:
            paths = [layer_path(path, layer) for layer in range(depth)]
            assert len(set(paths)) == depth
            assert all(re.sub(r"/\d+/", "/", f"/{one}") == f"/{path}" for one in paths)
