"""Training of a WordPiece vocabulary: it spells its captions, has at most the size, and is reproducible."""

import itertools
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.tokenizer.normalize import split_words
from clipa_eqx.tokenizer.train import train_wordpiece
from clipa_eqx.tokenizer.vocabulary import write_vocab
from clipa_eqx.tokenizer.wordpiece import Tokenizer

CAPTIONS = ["red dog", "red dogs", "a red bird", "a bird", "birds and dogs", "reddish birds, 3", "Rédo!"] * 3


def test_a_trained_vocabulary_spells_its_captions(tmp_path):
    pieces = train_wordpiece(CAPTIONS, vocab_size=60)
    assert pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(pieces) == len(set(pieces)) <= 60
    assert {"red", "dog", "bird"} <= set(pieces)
    write_vocab(pieces, tmp_path / "vocab.txt")
    tokenizer = Tokenizer.from_file(tmp_path / "vocab.txt")
    for caption in CAPTIONS:
        ids = tokenizer.encode(caption, length=32).ids
        assert tokenizer.unk_id not in ids
        assert tokenizer.decode(ids) == " ".join(split_words(caption))


def test_training_does_not_depend_on_order_process_or_hash_seed():
    rare = [f"{a}{b}{c}" for a, b, c in itertools.permutations("abcdefghijkl", 3)][::7] * 2
    here = train_wordpiece(rare, vocab_size=120)
    program = (
        "from clipa_eqx.tokenizer.train import train_wordpiece;"
        f"print(*train_wordpiece({rare[::-1]!r}, vocab_size=120), sep='\\n', end='')"
    )
    for _ in range(2):
        there = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
        assert there.stdout.split("\n") == here
    assert len(here) == 120


@given(captions=st.lists(st.text(max_size=20), max_size=6), vocab_size=st.integers(7, 60))
@settings(max_examples=15, deadline=None)
def test_training_respects_the_size_and_gives_a_usable_vocabulary(captions, vocab_size):
    pieces = train_wordpiece([*captions, "a dog"], vocab_size=vocab_size, min_frequency=1)
    assert len(pieces) <= vocab_size
    Tokenizer(pieces=tuple(pieces), classes=bytes(len(pieces)))


def test_pairs_below_the_minimum_frequency_are_not_merged():
    assert "zy" not in train_wordpiece(["zy", "ab ab"], vocab_size=50)
    assert "ab" in train_wordpiece(["zy", "ab ab"], vocab_size=50)


@pytest.mark.parametrize(
    ("captions", "options", "error"),
    [
        (["a dog"], {"vocab_size": 6}, ConfigError),
        (["a dog"], {"vocab_size": 60, "min_frequency": 0}, ConfigError),
        ([], {"vocab_size": 60}, DataError),
        (["", " \t", "\ufffd"], {"vocab_size": 60}, DataError),
    ],
)
def test_captions_and_sizes_without_a_vocabulary_are_refused(captions, options, error):
    with pytest.raises(error, match="vocabulary"):
        train_wordpiece(captions, **options)
