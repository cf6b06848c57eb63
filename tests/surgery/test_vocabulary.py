"""Another vocabulary: shared pieces keep their rows and texts of them their embeddings."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.leaves import assert_bit_equal, assert_same_leaves
from support.random_clips import random_clip, text_output
from support.tiny_models import PIECES

from clipa_eqx import surgery
from clipa_eqx.errors import ConfigError

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jr.key(5)


@pytest.mark.parametrize(("new", "more"), [([*PIECES[20:3:-1], "new", "##er"], 0), (["new", PIECES[63]], 2)])
def test_shared_pieces_keep_their_rows(new, more):
    check_rows(new, more)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(new=st.lists(st.sampled_from([*PIECES, "new", "##er"]), min_size=2, unique=True), more=st.integers(0, 3))
def test_shared_pieces_of_all_vocabularies_keep_their_rows(new, more):
    check_rows(new, more)


def check_rows(new, more):
    new = [PIECES[7], *(piece for piece in new if piece != PIECES[7])]
    model = random_clip()
    swapped, report = surgery.swap_vocabulary(model, old=PIECES, new=new, rows=len(new) + more, key=KEY)
    table = np.asarray(swapped.text.token.weight)
    assert table.shape == (len(new) + more, 32)
    shared = [piece for piece in new if piece in PIECES]
    for piece in shared:
        np.testing.assert_array_equal(table[new.index(piece)], model.text.token.weight[PIECES.index(piece)])
    fresh = [row for row, piece in enumerate([*new, *[""] * more]) if piece not in PIECES]
    assert all(0.0 < np.abs(table[row]).max() < 0.2 for row in fresh)
    assert f"rows of {len(shared)} shared pieces kept, {len(fresh)} random" in str(report)
    assert_same_leaves(swapped, model, but=("text/token/weight",))
    assert {leaf.path for leaf in report.leaves} == {"text/token/weight"}
    surgery.validate(swapped)


def test_a_text_of_shared_pieces_keeps_its_embedding():
    new = list(reversed(PIECES))
    model = random_clip()
    swapped = surgery.swap_vocabulary(model, old=PIECES, new=new, key=KEY).model
    ids = jnp.array([2, 9, 10, 11, 40, 63, 0, 0])
    np.testing.assert_array_equal(text_output(swapped, 63 - ids), text_output(model, ids))
    back = surgery.swap_vocabulary(swapped, old=new, new=PIECES, key=KEY).model
    assert_bit_equal(back, model)


def test_the_same_vocabulary_is_the_same_model():
    model = random_clip()
    same, report = surgery.swap_vocabulary(model, old=PIECES, new=PIECES, key=KEY)
    assert same is model
    assert report == surgery.SurgeryReport()


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ({"old": ("a", "b", "a")}, "old vocabulary has the piece 'a' twice"),
        ({"new": ("b", "b")}, "new vocabulary has the piece 'b' twice"),
        ({"old": [str(i) for i in range(65)]}, "old vocabulary has 65 pieces, the token table 64 rows"),
        ({"new": ("a", "b"), "rows": 1}, "new vocabulary has 2 pieces, the token table 1 rows"),
        ({"new": ("x", "y")}, "share no piece"),
    ],
)
def test_vocabularies_that_do_not_fit_are_refused(pieces, message):
    with pytest.raises(ConfigError, match=message):
        surgery.swap_vocabulary(random_clip(), **({"old": PIECES, "new": ("a",), "key": KEY} | pieces))
