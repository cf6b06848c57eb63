"""Frozen parts and slower early layers: rules of an optimizer that fit the model they were made for."""

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from support.random_clips import gradient, random_clip
from support.tiny_models import tiny_clip_config

from clipa_eqx import surgery
from clipa_eqx.durations import RunLength
from clipa_eqx.errors import ConfigError
from clipa_eqx.optim import OptimConfig, layer_decay_rules, make_optimizer
from clipa_eqx.schedules import Cosine, Rsqrt
from clipa_eqx.trees import leaves_by_path, match_by_path

pytestmark = pytest.mark.usefixtures("quick_compile")

PLAIN = OptimConfig(peak_lr=1e-2)
TWO = OptimConfig(
    peak_lr=1e-2,
    schedules=(("image/.*", Rsqrt()), ("text/.*", Cosine()), (".*", None)),
    lr_factors=(("image/.*", 0.1), (".*", 1.0)),
)


def test_frozen_leaves_keep_their_bits_and_have_no_moments():
    start = model = random_clip(image={"position": "learned"})
    optim = surgery.freeze(PLAIN, model, "image/.*", "text/blocks/0/.*", "text/token/weight")
    optimizer = make_optimizer(optim, model, RunLength(total_steps=4))
    state = optimizer.init(model)
    for _ in range(3):
        updates, state = eqx.filter_jit(optimizer.update)(gradient(model), state, model)
        model = optax.apply_updates(model, updates)
    moments = [name for name in leaves_by_path(state) if "/mu/" in name or "/nu/" in name]
    assert moments
    assert not any("image/" in name or "text/token" in name for name in moments)
    before, after = leaves_by_path(start), leaves_by_path(model)
    for path, leaf in after.items():
        if path.startswith(("image/", "text/token")):
            np.testing.assert_array_equal(leaf, before[path], err_msg=path)
        elif path.startswith("text/blocks/"):
            np.testing.assert_array_equal(leaf[0], before[path][0], err_msg=path)
            if "weight" in path:
                assert not np.array_equal(leaf[1], before[path][1]), path


def test_rules_that_no_longer_decide_a_leaf_are_removed():
    frozen = surgery.freeze(TWO, tiny_clip_config(), "image/.*")
    assert frozen.schedules == (("image/.*", None), *TWO.schedules[1:])
    assert frozen.lr_factors == TWO.lr_factors
    again = surgery.freeze(frozen, tiny_clip_config(), "image/.*")
    assert again == frozen
    make_optimizer(frozen, random_clip(), RunLength(total_steps=2))


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ((), "there are no patterns"),
        (("img/.*",), r"'img/\.\*' matches no leaf"),
        (("image/.*", "image/norm/.*"), "'image/norm/.*' matches no leaf that an earlier pattern leaves"),
        (("image/blocks/2/.*",), "matches no leaf"),
        ((".*",), "freezes every leaf"),
        (("(",), "not a regular expression"),
    ],
)
def test_patterns_that_freeze_nothing_or_everything_are_refused(patterns, message):
    with pytest.raises(ConfigError, match=message):
        surgery.freeze(PLAIN, tiny_clip_config(), *patterns)


def test_early_layers_learn_more_slowly_and_other_leaves_as_before():
    model = random_clip(blocks={"depth": 3})
    optim = surgery.layer_decay(TWO, model, factor=0.5, towers=("image",))
    assert optim.lr_factors == (*layer_decay_rules(0.5, depth=3, tower="image"), *TWO.lr_factors)
    factors = match_by_path(optim.lr_factors, model, what="optim.lr_factors")
    assert factors["image/blocks/attn/q/weight"] == (0.125, 0.25, 0.5)
    assert factors["image/patch/weight"] == 0.0625
    assert factors["image/norm/weight"] == 0.1
    assert factors["text/blocks/attn/q/weight"] == 1.0


def test_both_towers_have_the_depths_of_the_model_and_useless_rules_are_removed():
    config = tiny_clip_config()
    optim = OptimConfig(peak_lr=1.0, lr_factors=(("text/blocks/.*", 0.3), (".*", 1.0)))
    decayed = surgery.layer_decay(optim, config, factor=0.5)
    both = [rule for tower in ("image", "text") for rule in layer_decay_rules(0.5, depth=2, tower=tower)]
    assert decayed.lr_factors == (*both, (".*", 1.0))
    make_optimizer(decayed, random_clip(), RunLength(total_steps=2))


@pytest.mark.parametrize(
    ("options", "message"), [({"factor": 0.0}, r"factor in \(0, 1\]"), ({"factor": 0.5, "towers": ()}, "no towers")]
)
def test_requests_that_slow_down_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        surgery.layer_decay(PLAIN, tiny_clip_config(), **options)


def test_a_classifier_can_be_trained_alone():
    model = random_clip()
    classifier = surgery.add_classifier(model, np.eye(3, 16, dtype=np.float32)).model
    optim = surgery.freeze(PLAIN, classifier, "image/.*")
    state = make_optimizer(optim, classifier, RunLength(total_steps=2)).init(classifier)
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert shapes == [(3,), (3,), (3, 16), (3, 16)]
