"""The tokenizer gives exactly the ids recorded with another release of the reference's tokenizer library."""

import pytest
from support import goldens

goldens.require("facts")

CASES = goldens.load_json("facts/bert_tokenize_tf_text_2_11.json")


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case["text"])[:30])
def test_nested_word_pieces_equal_the_recording(bert, case):
    assert bert.words(case["text"]) == case["ids"]
