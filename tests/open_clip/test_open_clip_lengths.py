"""Texts whose ids differ between this package and open_clip, for every length; docs/open_clip.md has them."""

import logging
import re

import numpy as np
import pytest
from support import goldens
from support.open_clip_folders import save
from support.paths import ROOT
from support.random_models import random_model
from support.tiny_models import tiny_clip_config

from clipa_eqx.tokenizer.wordpiece import Tokenizer
from conversion.open_clip.__main__ import main
from conversion.open_clip.exporting import text_note
from conversion.open_clip.tokenizer import json_tokenizer, write_tokenizer

CAPTIONS = goldens.load_json("tokenizers/captions.json")["captions"]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROW = re.compile(r"\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.bert()


def table():
    """The rows of the manual: length, long captions, equal with BERT's, the long ones of these, equal with ours."""
    text = (ROOT / "docs/open_clip.md").read_text(encoding="utf-8")
    return [tuple(map(int, found.groups())) for found in ROW.finditer(text)]


def ids_of(folder, tokenizer, *, length, as_reference):
    """The ids that open_clip makes with an exported tokenizer."""
    folder.mkdir()
    write_tokenizer(folder, tokenizer, length=length, as_reference=as_reference)
    return json_tokenizer(folder / "tokenizer.json", length=length, strips_sep=True)(CAPTIONS)


@pytest.mark.parametrize("length", [8, 16, 32, 77])
def test_the_manual_has_the_numbers_of_every_length(tokenizer, length, tmp_path):
    pieces = np.array([sum(map(len, tokenizer.words(caption))) for caption in CAPTIONS])
    is_long = pieces >= length - 1
    ours = tokenizer(CAPTIONS, length=length).ids
    bert = ids_of(tmp_path / "bert", tokenizer, length=length, as_reference=False)
    exported = ids_of(tmp_path / "ours", tokenizer, length=length, as_reference=True)
    is_equal = (ours == bert).all(axis=1)
    row = (length, is_long.sum(), is_equal.sum(), is_equal[is_long].sum(), (ours == exported).all(axis=1).sum())
    assert row in table()
    # The rule behind the numbers: where open_clip keeps a place for [SEP], a long text has padding.
    plain = np.array([not any(token in caption for token in SPECIAL) for caption in CAPTIONS])
    assert (bert[is_long & plain, -1] == 0).all()
    assert (ours[is_long, -1] != 0).all()


def test_the_manual_has_no_other_lengths():
    assert [row[0] for row in table()] == [8, 16, 32, 77]


@pytest.mark.parametrize(("length", "level"), [(8, logging.WARNING), (16, logging.WARNING), (32, logging.INFO)])
@pytest.mark.parametrize(
    ("rules", "words"), [("bert", "its tokenizer is open_clip's"), ("reference", "gives the ids of this package")]
)
def test_the_note_names_the_texts_that_differ(tmp_path, length, level, rules, words):
    found, text = text_note(tmp_path, rules=rules, length=length)
    assert found == level
    assert words in text
    assert f"one of the {length} places for [SEP]: a text of {length - 1} word pieces or more" in text


def test_the_export_of_a_model_of_8_tokens_says_so(tmp_path, caplog):
    save(tmp_path / "model", random_model(tiny_clip_config(blocks={"depth": 1}, text={"length": 8})))
    main(["export", str(tmp_path / "model"), str(tmp_path / "theirs")])
    (warning,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert "a text of 7 word pieces or more loses its last piece" in warning
    assert f"open_clip.get_tokenizer('local-dir:{tmp_path / 'theirs'}')" in warning
