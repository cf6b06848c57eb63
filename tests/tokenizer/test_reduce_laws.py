"""Laws of all reductions: never more pieces than fit, always in order, and the same choice for the same numbers."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa_eqx.tokenizer.reduce import keep_block, keep_by_class, keep_first_of_order, reduce_words
from clipa_eqx.tokenizer.vocabulary import bert_classes, bert_pieces, look_up_classes, serialize

CLASSES = bytes([4, 1, 2, 3, 4, 1, 2, 3, 4, 1])
# Each piece occurs once, so that its place is known.
WORDS = st.permutations(range(10)).flatmap(
    lambda ids: st.lists(st.integers(1, 3), max_size=8).map(lambda lengths: cut(ids, lengths))
)
ALL = ["truncate", "syntax", "random", "block"]


def cut(ids, lengths):
    words, at = [], 0
    for length in lengths:
        words.append(list(ids[at : at + length]))
        at += length
    return [word for word in words if word]


def reduce(words, room, reduction, seed=0):
    rng = np.random.default_rng(seed)
    return reduce_words(words, room=room, reduction=reduction, classes=CLASSES, rng=rng)


@settings(deadline=None)
@given(WORDS, st.integers(0, 12), st.sampled_from(ALL), st.integers(0, 99))
def test_what_is_kept_fits_and_has_its_order(words, room, reduction, seed):
    pieces = [piece for word in words for piece in word]
    kept = reduce(words, room, reduction, seed)
    assert len(kept) <= room
    assert kept == [piece for piece in pieces if piece in kept]
    assert kept == reduce(words, room, reduction, seed)
    if reduction != "syntax":
        assert len(kept) == min(room, len(pieces))


@settings(deadline=None)
@given(WORDS, st.sampled_from(ALL))
def test_a_caption_that_fits_is_kept_whole(words, reduction):
    pieces = [piece for word in words for piece in word]
    assert reduce(words, len(pieces), reduction) == pieces


@settings(deadline=None)
@given(WORDS, st.integers(1, 6))
def test_no_dropped_word_is_of_a_lower_class_than_a_kept_one(words, room):
    kept = keep_by_class(words, classes=CLASSES, room=room)
    dropped = [word for word in words if word not in kept]
    assert [word for word in words if word in kept] == kept
    assert len(kept) == min(room, len(words))
    for one in dropped:
        for other in kept:
            a, b = CLASSES[one[0]], CLASSES[other[0]]
            assert a > b or (a == b and words.index(one) > words.index(other))


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 8))
def test_a_block_is_a_slice_and_a_permutation_keeps_a_subset(count, room, start):
    pieces = list(range(count))
    assert keep_block(pieces, start=start, room=room) == pieces[start : start + room]
    order = np.random.default_rng(start).permutation(count).tolist()
    assert keep_first_of_order(pieces, order=order, room=room) == sorted(order[:room])


def test_berts_table_has_one_class_per_piece_and_unknown_pieces_are_other():
    pieces, classes = bert_pieces(), bert_classes()
    assert len(pieces) == len(classes) == 30_522
    assert set(classes) == {1, 2, 3, 4}
    assert look_up_classes(pieces) == (classes, 0)
    assert look_up_classes(["dog", "nonsuch-piece", "dog"]) == (bytes([1, 4, 1]), 1)
    assert serialize(["[PAD]", "é"]) == "[PAD]\né\n".encode()
