"""The tokenizer gives exactly the ids that the reference produced."""

import base64
import dataclasses
import functools

import numpy as np
import pytest
from support import goldens

from clipa_eqx.tokenizer.reduce import keep_block, keep_first_of_order

goldens.require("tokenizers")

INFO = goldens.load_json("tokenizers/info.json")
ARRAYS = goldens.load_npz("tokenizers/tokens.npz")
ROOM = INFO["custom_len"] - 1


@functools.cache
def captions() -> list[str | bytes]:
    found = goldens.load_json("tokenizers/captions.json")
    return [*found["captions"], *map(base64.b64decode, found["invalid_utf8_base64"])]


def describe_differences(got, want) -> str:
    rows = np.flatnonzero((got != want).any(axis=1))
    return "\n".join(f"{i} {captions()[i]!r}: {got[i].tolist()} expected {want[i].tolist()}" for i in rows[:5])


def test_the_shipped_vocabulary_is_the_reference_file(bert):
    assert bert.vocab_sha256 == INFO["vocab_sha256"]
    assert bert.cls_id == INFO["cls_id"] == int(ARRAYS["cls_id"])


def test_the_shipped_classes_are_the_reference_tagger_output(bert):
    recorded = ARRAYS["pos_order"]
    assert recorded.size == INFO["vocab_entries_in_pos_table"] == bert.vocab_size + 1
    np.testing.assert_array_equal(np.frombuffer(bert.classes, np.uint8), recorded[:-1])


def test_every_word_piece_equals_the_reference(bert):
    words = [bert.words(caption) for caption in captions()]
    assert [len(w) for w in words] == ARRAYS["full/words_per_caption"].tolist()
    assert [len(word) for w in words for word in w] == ARRAYS["full/word_lengths"].tolist()
    assert [piece for w in words for word in w for piece in word] == ARRAYS["full/flat_ids"].tolist()


@pytest.mark.parametrize("length", INFO["max_lens"])
def test_truncate_equals_the_reference(bert, length):
    got = bert(captions(), length=length)
    want = ARRAYS[f"bert_tokenize/{length}"]
    assert (got.ids == want).all(), describe_differences(got.ids, want)
    pieces = np.array([sum(map(len, bert.words(caption))) for caption in captions()])
    assert got.truncated == (pieces > length - 1).sum()


@pytest.mark.parametrize("length", INFO["max_lens"])
@pytest.mark.parametrize("table", ["", "_synthetic"])
def test_syntax_equals_the_reference(bert, length, table):
    tokenizer = bert
    if table:
        classes = ARRAYS["synthetic_pos_order"][:-1].astype(np.uint8).tobytes()
        tokenizer = dataclasses.replace(tokenizer, classes=classes)
    got = tokenizer(captions(), length=length, reduction="syntax").ids
    want = ARRAYS[f"noun_tokenize{table}/{length}"]
    assert (got == want).all(), describe_differences(got, want)


@pytest.mark.parametrize("name", ["custom_first", "custom_eval"])
def test_the_custom_op_truncates_if_it_is_not_random(bert, name):
    got = bert(captions(), length=INFO["custom_len"]).ids
    want = ARRAYS[f"{name}/{INFO['custom_len']}"]
    assert (got == want).all(), describe_differences(got, want)


def test_the_first_of_several_captions_is_taken_and_none_is_empty(bert):
    chosen = [options[0] if options else "" for options in INFO["multi_captions"]]
    recorded = ARRAYS["first_of_multi"]
    np.testing.assert_array_equal(bert(chosen, length=recorded.shape[1]).ids, recorded)


@pytest.mark.parametrize("kind", ["random", "block"])
def test_random_and_block_equal_the_reference_on_its_own_random_numbers(bert, kind):
    """The reference's three errors are applied here: it cuts the pieces to the number of words, it reduces only if the
    words (not the pieces) are too many, and "random" leaves the kept pieces shuffled."""
    draws = {d["caption"]: d for d in goldens.load_json("tokenizers/custom_draws.json")["draws"] if d["type"] == kind}
    recorded = ARRAYS[f"custom_{kind}/{INFO['custom_len']}"]
    checked = 0
    for i, caption in enumerate(captions()):
        words = bert.words(caption)
        pieces = [piece for word in words for piece in word]
        if i not in draws:
            assert len(words) <= ROOM
            kept = pieces[:ROOM]
        else:
            assert len(words) > ROOM
            cut = pieces[: len(words)]
            if kind == "block":
                kept = keep_block(cut, start=draws[i]["start"], room=ROOM)
            else:
                order = draws[i]["perm"]
                kept = keep_first_of_order(cut, order=order, room=ROOM)
                # back to the reference's shuffled order: the rank of each kept position among the kept ones
                kept = [kept[rank] for rank in np.argsort(np.argsort(order[:ROOM]))]
            checked += 1
        want = recorded[i].tolist()
        assert [INFO["cls_id"], *kept, *[0] * (ROOM - len(kept))] == want, f"{i} {caption!r}"
    assert checked == len(draws) > 0
