"""Paths name leaves, rules decide leaves in order, and the layers of stacked leaves are decided one by one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from clipa_eqx.errors import ConfigError
from clipa_eqx.trees import (
    count_params,
    from_leaves,
    layer_path,
    leaf_paths,
    leaves_by_path,
    map_with_path,
    match_any,
    match_by_path,
)

DEPTH = 3


class Linear(eqx.Module):
    weight: jax.ShapeDtypeStruct
    bias: jax.ShapeDtypeStruct | None


def _abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.fixture
def tree():
    return {
        "image": {"blocks": {"q": Linear(_abstract(DEPTH, 4, 4), _abstract(DEPTH, 4))}, "class_token": _abstract(4)},
        "log_temperature": _abstract(),
        "text": {"head": Linear(_abstract(2, 4), None)},
    }


def test_paths_join_keys_and_fields_and_leave_out_none(tree):
    assert leaf_paths(tree) == [
        "image/blocks/q/weight",
        "image/blocks/q/bias",
        "image/class_token",
        "log_temperature",
        "text/head/weight",
    ]


def test_map_with_path_keeps_the_structure(tree):
    mapped = map_with_path(lambda path, leaf, other: (path, leaf is other), tree, tree)
    assert mapped["text"]["head"].bias is None
    assert mapped["text"]["head"].weight == ("text/head/weight", True)


def test_abstract_leaves_are_counted(tree):
    assert count_params(tree) == DEPTH * 16 + DEPTH * 4 + 4 + 1 + 8


def test_first_match_wins_and_patterns_match_whole_paths(tree):
    decided = match_by_path(
        [("weight", 0), ("text/.*", 1), (".*/weight", 2), (".*", 3)], tree, what="x", unused="allow"
    )
    assert decided == {
        "image/blocks/q/weight": 2,
        "image/blocks/q/bias": 3,
        "image/class_token": 3,
        "log_temperature": 3,
        "text/head/weight": 1,
    }


def test_layers_that_differ_give_a_tuple_over_depth(tree):
    rules = [("image/blocks/[01]/q/weight", "low"), ("image/blocks/q/bias", "bias"), (".*", "rest")]
    decided = match_by_path(rules, tree, what="x")
    assert decided["image/blocks/q/weight"] == ("low", "low", "rest")
    assert decided["image/blocks/q/bias"] == "bias"


def test_layers_that_agree_give_a_plain_value(tree):
    rules = [(f"image/blocks/{i}/.*", "same") for i in range(DEPTH)]
    assert match_by_path([*rules, (".*", "rest")], tree, what="x")["image/blocks/q/weight"] == "same"


def test_an_earlier_rule_for_the_stack_beats_a_later_one_for_a_layer(tree):
    rules = [("image/blocks/q/.*", 1), ("image/blocks/0/.*", 2), (".*", 3)]
    with pytest.raises(ConfigError, match=r"'image/blocks/0/\.\*' decides no leaf"):
        match_by_path(rules, tree, what="x")


def test_a_tree_of_decided_values_has_the_structure_of_the_tree(tree):
    matched = from_leaves(tree, match_by_path([(".*/weight", 0.5), (".*", 0.0)], tree, what="x"))
    assert matched["text"]["head"].weight == 0.5
    assert matched["text"]["head"].bias is None
    assert matched["log_temperature"] == 0.0


def test_a_tree_is_made_from_its_leaves_by_path_in_any_order(tree):
    leaves = leaves_by_path(tree)
    assert list(leaves) == leaf_paths(tree)
    reordered = {"unknown": 1, **dict(reversed(leaves.items()))}
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, from_leaves(tree, reordered), tree))
    with pytest.raises(KeyError, match="image/class_token"):
        from_leaves(tree, {path: leaf for path, leaf in leaves.items() if path != "image/class_token"})


def test_every_uncovered_leaf_is_named(tree):
    with pytest.raises(ConfigError, match=r"decay: no rule matches 'image/class_token', 'log_temperature'"):
        match_by_path([(".*/(weight|bias)", 1)], tree, what="decay")


def test_uncovered_layers_are_named(tree):
    rules = [("image/blocks/[02]/.*", 1), ("(image/class_token|log_temperature|text/.*)", 1)]
    with pytest.raises(ConfigError, match=r"'image/blocks/1/q/weight', 'image/blocks/1/q/bias'"):
        match_by_path(rules, tree, what="x")


def test_a_rule_that_decides_nothing_is_named(tree):
    with pytest.raises(ConfigError, match=r"decay: 'imgae/\.\*' decides no leaf"):
        match_by_path([("imgae/.*", 1), (".*", 0)], tree, what="decay")


def test_patterns_that_choose_leaves_may_overlap(tree):
    wide, narrow = match_any(["image/.*"], tree, what="x"), match_any(["image/.*", "image/blocks/1/.*"], tree, what="x")
    assert wide == narrow
    assert set(wide.values()) == {True, False}
    with pytest.raises(ConfigError, match=r"x: 'imgae/\.\*' matches no leaf"):
        match_any(["image/.*", "imgae/.*"], tree, what="x")


def test_a_broken_pattern_is_named(tree):
    with pytest.raises(ConfigError, match=r"'\(image' is not a regular expression"):
        match_by_path([("(image", 1)], tree, what="x")


def test_only_stacked_leaves_have_layers():
    assert layer_path("blocks/norm1/bias", 2) == "blocks/2/norm1/bias"
    assert layer_path("mu/text/blocks/norm1/bias", 0) == "mu/text/blocks/0/norm1/bias"
    for path in ("image/class_token", "image/blocks/0/class_token"):
        with pytest.raises(ConfigError, match="not the path of a stacked leaf"):
            layer_path(path, 0)
