"""The rule table: it covers every leaf exactly once, and a file that does not fit it is refused with all problems."""

import dataclasses

import numpy as np
import pytest
from support.leaves import assert_bit_equal
from support.random_models import random_model
from support.tiny_models import tiny_clip_config

from clipa_eqx.errors import ConversionError
from clipa_eqx.models.embed import sincos_1d
from conversion.flax_clipa.names import flax_rules
from conversion.weights.leaf_rule import ComputedRule
from conversion.weights.rules import RuleTable, export_leaves, import_leaves
from conversion.weights.tensors import Arrays

CONFIG = tiny_clip_config()
RULES = flax_rules(CONFIG)
LENGTH, WIDTH = CONFIG.text.length, CONFIG.text.blocks.width


@pytest.fixture(scope="module")
def arrays():
    return export_leaves(RULES, random_model(CONFIG))


def read_all(table, arrays, **options):
    return [one for tensor in table.read(Arrays(arrays, path="x"), **options) for one in tensor.slices]


def refused(table, arrays, **options):
    with pytest.raises(ConversionError) as caught:
        read_all(table, arrays, **options)
    return str(caught.value)


def test_the_placed_tensors_are_computed_once():
    table = RuleTable(RULES, CONFIG)
    assert table.placed is table.placed


def test_a_leaf_without_a_rule_and_a_rule_without_a_leaf_are_refused():
    with pytest.raises(
        ConversionError, match=r"leaves without a rule \['log_temperature'\], rules without a leaf \[\]"
    ):
        _ = RuleTable([rule for rule in RULES if rule.path != "log_temperature"], CONFIG).placed
    odd = dataclasses.replace(RULES[0], path="image/odd")
    with pytest.raises(ConversionError, match=r"rules without a leaf \['image/odd'\]"):
        _ = RuleTable([*RULES, odd], CONFIG).placed


def test_parts_that_do_not_make_up_a_tensor_are_refused():
    rules = [dataclasses.replace(rule, part=(0, 3)) if rule.name == "t" else rule for rule in RULES]
    with pytest.raises(ConversionError, match=r"the parts \[\(0, 3\)\] do not make up t"):
        _ = RuleTable(rules, CONFIG).placed


def test_import_is_the_inverse_of_export():
    model = random_model(CONFIG)
    assert_bit_equal(import_leaves(RuleTable(RULES, CONFIG), export_leaves(RULES, model)), model)


def test_names_shapes_and_dtypes_are_checked_before_values_are_read(arrays):
    wrong = dict(arrays)
    del wrong["img/cls"]
    wrong |= {"extra": np.ones(2, np.float32), "t": np.ones((1, 1), np.float32)}
    wrong["txt/head/kernel"] = wrong["txt/head/kernel"].astype(np.float64)
    said = refused(RuleTable(RULES, CONFIG), wrong)
    for line in (
        f"missing: img/cls (1, 1, {WIDTH}) for image/class_token",
        "unused: extra (2,)",
        "shape: t is (1, 1), expected (1,) for log_temperature",
        "dtype: txt/head/kernel is float64, expected float32, bfloat16, float16",
    ):
        assert line in said
    assert "4 problems" in said


def test_values_that_are_not_finite_or_negative_squares_are_listed_together(arrays):
    squares = {name: np.square(array) for name, array in arrays.items()}
    assert len(read_all(RuleTable(RULES, CONFIG), squares, are_squares=True)) > len(RULES)
    squares["t"] = np.full(1, np.nan, np.float32)
    squares["img/cls"] = -squares["img/cls"]
    said = refused(RuleTable(RULES, CONFIG), squares, are_squares=True)
    assert "not finite: t for log_temperature" in said
    assert "negative: img/cls for image/class_token has values below zero" in said
    assert "2 problems" in said


def test_absent_tensors_are_read_as_zeros_only_if_they_may_be_absent(arrays):
    some = {name: array for name, array in arrays.items() if name != "img/cls"}
    table = RuleTable(RULES, CONFIG)
    assert "missing: img/cls" in refused(table, some)
    [found] = [one for one in read_all(table, some, absent=["img/cls"]) if one.path == "image/class_token"]
    assert not found.values.any()


def test_half_precision_is_kept_only_on_request(arrays):
    halves = {name: array.astype(np.float16) for name, array in arrays.items()}
    table = RuleTable(RULES, CONFIG)
    assert {one.values.dtype for one in read_all(table, halves)} == {np.dtype(np.float32)}
    assert {one.values.dtype for one in read_all(table, halves, keep_dtype=True)} == {np.dtype(np.float16)}


def test_a_computed_tensor_is_exported_and_compared_on_import():
    config = tiny_clip_config(text={"position": "sincos1d"})
    computed = ComputedRule(name="positions", value=lambda: sincos_1d(LENGTH, WIDTH), shape=(LENGTH, WIDTH), atol=1e-5)
    table = RuleTable([*flax_rules(config), computed], config)
    arrays = export_leaves(table.rules, random_model(config))
    np.testing.assert_array_equal(arrays["positions"], sincos_1d(LENGTH, WIDTH))
    assert not any(one.path == "text/position" for one in read_all(table, arrays))
    near, far = (arrays | {"positions": arrays["positions"] + step} for step in (9e-6, 2e-5))
    read_all(table, near)
    assert "value: positions differs by up to 2e-05 from what this model computes" in refused(table, far)
