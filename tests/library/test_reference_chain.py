"""The optimizer chain of the reference for a config: which entries it has, and which layers have no moments."""

import jax
import numpy as np

from clipa_eqx.durations import Duration
from clipa_eqx.optim import OptimConfig
from clipa_eqx.reference_chain import chain_shape
from clipa_eqx.schedules import Cosine

PARAMS = {
    "image": {"blocks": {"weight": jax.ShapeDtypeStruct((3, 4, 4), np.float32)}},
    "text": {"head": jax.ShapeDtypeStruct((4, 4), np.float32)},
    "log_temperature": jax.ShapeDtypeStruct((), np.float32),
}
SLOW = Cosine(warmup=Duration(steps=5))


def shape(**fields):
    chosen = {"peak_lr": 1.0, "decay": ((".*", 1.0),), "schedules": ((".*", Cosine()),)}
    return chain_shape(OptimConfig(**(chosen | fields)), PARAMS)


def test_a_plain_config_has_one_decay_one_schedule_and_nothing_frozen():
    assert shape(weight_decay=0.1) == (1, 0, 1, frozenset())


def test_rules_of_one_value_are_one_entry_and_a_decay_of_zero_is_none():
    decay = (("text/.*", 1.0), ("image/.*", 0.5), ("log_temperature", 0.0))
    assert shape(weight_decay=0.1, decay=decay).decays == 2
    assert shape(weight_decay=0.1, decay=(("text/.*", 1.0), ("image/.*", 1.0), (".*", 0.0))).decays == 1
    assert shape(weight_decay=0.0, decay=decay).decays == 0


def test_layers_with_values_of_their_own_add_entries():
    assert shape(weight_decay=0.1, decay=(("image/blocks/0/.*", 0.5), (".*", 1.0))).decays == 2
    assert shape(schedules=(("image/blocks/0/.*", SLOW), (".*", Cosine()))).schedules == 2


def test_factors_count_only_if_one_of_them_changes_anything():
    assert shape(lr_factors=(("text/.*", 1.0), (".*", 1.0))).factors == 0
    assert shape(lr_factors=(("text/.*", 0.1), (".*", 1.0))).factors == 2
    assert shape(lr_factors=((".*", 0.1),)).factors == 1


def test_frozen_leaves_and_frozen_layers_are_named_and_have_no_schedule():
    found = shape(schedules=(("image/blocks/[02]/.*", None), ("text/.*", None), (".*", SLOW)))
    assert found.schedules == 1
    assert found.frozen == {("text/head", None), ("image/blocks/weight", 0), ("image/blocks/weight", 2)}


def test_a_rule_that_decides_nothing_is_no_error():
    """A run that is imported may have rules for parts that its model lacks."""
    assert shape(weight_decay=0.1, decay=(("no/such/leaf", 7.0), (".*", 1.0))).decays == 1
