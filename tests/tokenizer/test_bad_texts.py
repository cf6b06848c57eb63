"""Captions that are no texts, and vocabulary files as other programs save them."""

import logging
import math

import numpy as np
import pytest

from clipa_eqx.config_files import load_config
from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.evals.prompts import read_class_names
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.tokenizer.train import train_wordpiece
from clipa_eqx.tokenizer.vocabulary import SPECIAL
from clipa_eqx.tokenizer.wordpiece import Tokenizer

pytestmark = pytest.mark.usefixtures("no_type_checks")

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a dog", None, "cat", None], r"texts\[1\] is None \(NoneType\).*2 of 4 texts are no strings \(1, 3\)"),
        (["a dog", math.nan], r"texts\[1\] is nan \(float\).*1 of 2 texts.*\(1\)"),
        ([7], r"texts\[0\] is 7 \(int\)"),
        ([["a dog"]], r"texts\[0\] is \['a dog'\] \(list\)"),
        ([None] * 30, r"30 of 30 texts are no strings \(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\.\)"),
        (np.array(["a dog", None], object), r"texts\[1\] is None"),
        (None, "got NoneType, expected a list of captions"),
        ((text for text in ["a dog"]), r"got generator, expected a list of captions; pass list\(\.\.\.\)"),
    ],
    ids=["none", "nan", "int", "nested", "many", "array", "no list", "generator"],
)
def test_a_caption_that_is_no_text_is_one_error_with_its_index(bert, texts, message):
    with pytest.raises(DataError, match=message):
        bert(texts, length=8)


@pytest.mark.parametrize("text", [None, math.nan, ["a dog"]])
def test_one_caption_that_is_no_text_is_an_error(bert, text):
    for call in (lambda: bert.encode(text, length=8), lambda: bert.words(text)):
        with pytest.raises(DataError, match=r"the caption is .*expected a string"):
            call()


def test_texts_in_arrays_and_bytes_are_read(bert):
    expected = bert(["a dog", ""], length=4).ids
    for texts in (np.array(["a dog", ""]), np.array(["a dog", ""], object), (b"a dog", b""), [np.str_("a dog"), ""]):
        np.testing.assert_array_equal(bert(texts, length=4).ids, expected)


def test_decoding_a_batch_is_an_error(bert):
    with pytest.raises(DataError, match=r"one row of ids, got an array of shape \(1, 4\)"):
        bert.decode(bert(["a dog"], length=4).ids)


# Files

SMALL = (*SPECIAL, "dog", "##s")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_vocabulary_with_a_byte_order_mark_is_read(tmp_path, end):
    (tmp_path / "vocab.txt").write_bytes(BOM + end.join([*SMALL, ""]).encode())
    assert Tokenizer.from_file(tmp_path / "vocab.txt").pieces == SMALL
    assert load_tokenizer(tmp_path / "vocab.txt", model_vocab=10).pieces == SMALL


def test_an_empty_line_is_named_by_its_number(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SMALL, "", "", ""]))
    with pytest.raises(DataError, match=r"piece 7 \(line 8\) is ''"):
        Tokenizer.from_file(tmp_path / "vocab.txt")


def test_other_text_files_may_have_a_byte_order_mark(tmp_path):
    (tmp_path / "names.txt").write_bytes(BOM + b"cat\ndog\n")
    assert read_class_names(str(tmp_path / "names.txt")) == ("cat", "dog")
    (tmp_path / "config.py").write_bytes(BOM + b"x = 1\n")
    with pytest.raises(ConfigError, match="has no function config"):
        load_config(tmp_path / "config.py")


def write(path, pieces):
    path.write_text("".join(f"{piece}\n" for piece in pieces))
    return path


def test_a_cased_vocabulary_is_a_warning_that_counts_what_can_never_occur(bert, tmp_path, caplog):
    plain = [*SPECIAL, *(f"w{i}" for i in range(90))]
    vocab = write(tmp_path / "vocab.txt", [*plain, "Dog", "##S", "\u00c9t\u00e9", "caf\u00e9", "dog"])
    Tokenizer.from_file(vocab)
    (message,) = caplog.messages
    assert message.startswith(f"{vocab} is a cased vocabulary: 4 of its 100 pieces can never occur")
    assert "uncased vocabulary" in message


def test_every_piece_of_the_count_is_one_that_the_tokenizer_never_makes(tmp_path):
    pieces = [*SPECIAL, "d", "##o", "##g", "D", "##O", "Dog", "caf\u00e9", "c", "##a", "##f", "##e"]
    made = Tokenizer.from_file(write(tmp_path / "vocab.txt", pieces))
    texts = made(["dog Dog DOG café CAFÉ cafe"], length=40).ids
    assert not set(texts.ravel().tolist()) & {pieces.index(piece) for piece in ("D", "##O", "Dog", "caf\u00e9")}


def test_uncased_vocabularies_and_saved_tokenizers_are_no_warning(bert, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    Tokenizer.from_file(write(tmp_path / "bert.txt", bert.pieces))
    Tokenizer.from_file(write(tmp_path / "own.txt", train_wordpiece(["a dog", "two Dogs"] * 3, vocab_size=40)))
    assert caplog.messages == []
    made = Tokenizer.from_file(write(tmp_path / "cased.txt", [*SPECIAL, "Dog", "dog"]))
    assert len(caplog.messages) == 1
    made.save(tmp_path / "saved")
    Tokenizer.load(tmp_path / "saved")
    assert len(caplog.messages) == 1  # who loads a model has chosen no vocabulary
