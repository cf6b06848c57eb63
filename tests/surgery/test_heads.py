"""Other heads: only the heads are new, in both towers."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from support.leaves import assert_bit_equal, assert_same_leaves
from support.random_clips import IMAGE, random_clip

from clipa_eqx import surgery
from clipa_eqx.errors import ConfigError

pytestmark = pytest.mark.usefixtures("quick_compile")

HEADS = ("image/head/weight", "text/head/weight")


@pytest.mark.parametrize("embed", [7, 16])
def test_only_the_heads_are_new(embed):
    model = random_clip()
    swapped, report = surgery.swap_head(model, embed=embed, key=jr.key(2))
    assert_same_leaves(swapped, model, but=HEADS)
    assert tuple(leaf.path for leaf in report.leaves) == HEADS
    assert "image/head/weight: random, width 16 -> " in str(report)
    weights = [np.asarray(tower.head.weight) for tower in (swapped.image, swapped.text)]
    assert weights[0].shape == weights[1].shape == (embed, 32)
    assert not np.array_equal(*weights)
    assert 0.6 < weights[0].std() * 32**0.5 < 1.4
    # What is in front of the heads has the same static fields too, so it computes the same.
    before, after = (surgery.take_tower(one, "image", head=False).tower for one in (model, swapped))
    assert_bit_equal(after, before)
    assert jax.eval_shape(swapped.encode_text, jnp.arange(8)).shape == (embed,)
    surgery.validate(swapped)


def test_towers_without_heads_get_some():
    model = random_clip(image={"embed": None}, text={"embed": None})
    swapped, report = surgery.swap_head(model, embed=5, key=jr.key(2))
    assert all(leaf.before is None for leaf in report.leaves)
    assert jax.eval_shape(swapped.encode_image, IMAGE).shape == (5,)


def test_a_head_without_width_is_refused():
    with pytest.raises(ConfigError, match="embed is 0"):
        surgery.swap_head(random_clip(), embed=0, key=jr.key(2))
