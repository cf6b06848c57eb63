"""The tokenizer: properties of any caption, the four reductions, files, and errors for bad input."""

import dataclasses
import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.tokenizer.normalize import split_words
from clipa_eqx.tokenizer.reduce import keep_block, keep_by_class, reduce_words
from clipa_eqx.tokenizer.vocabulary import write_vocab
from clipa_eqx.tokenizer.wordpiece import Tokenizer

SMALL = ("[PAD]", "[UNK]", "[CLS]", "a", "dog", "##s", "qzx", "##qzx")
REDUCTIONS = ("truncate", "syntax", "random", "block")
ANY_TEXT = st.one_of(st.text(st.characters()), st.binary(), st.text("aB9 ,é\u0301ßⅧ\u200b\x00犬", max_size=40))

any_case = settings(max_examples=60, deadline=None)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def is_subsequence(part: list[int], whole: list[int]) -> bool:
    rest = iter(whole)
    return all(piece in rest for piece in part)


def kept_ids(ids: np.ndarray) -> list[int]:
    return [int(i) for i in ids[1:] if i != 0]


def test_a_vocabulary_larger_than_the_token_table_names_what_the_user_can_change():
    with pytest.raises(
        ConfigError, match=r"64 rows, .*BERT, the default.* 30522 pieces; .*data\.vocab.*model\.text\.vocab"
    ):
        load_tokenizer(None, model_vocab=64)
    with pytest.raises(ConfigError, match=r"64 rows, .* 30522 pieces; give another$"):
        load_tokenizer(None, model_vocab=64, remedy="give another")


# Every caption


@given(text=ANY_TEXT, length=st.integers(1, 12), reduction=st.sampled_from(REDUCTIONS), seed=st.integers(0, 3))
@any_case
def test_any_caption_gives_a_padded_row_of_known_ids(bert, text, length, reduction, seed):
    ids, is_truncated = bert.encode(text, length=length, reduction=reduction, rng=rng(seed))
    pieces = [piece for word in bert.words(text) for piece in word]
    kept = kept_ids(ids)
    assert ids.shape == (length,)
    assert ids.dtype == np.int32
    assert ids[0] == bert.cls_id
    assert ids.min() >= 0
    assert ids.max() < bert.vocab_size
    assert ids[1 + len(kept) :].tolist() == [0] * (length - 1 - len(kept))
    assert is_subsequence(kept, pieces)
    assert is_truncated == (len(kept) < len(pieces))
    if not is_truncated:
        assert kept == pieces
    again = bert.encode(text, length=length, reduction=reduction, rng=rng(seed))
    np.testing.assert_array_equal(ids, again.ids)


@given(text=ANY_TEXT)
@any_case
def test_normalizing_twice_changes_nothing(text):
    words = split_words(text)
    assert split_words(" ".join(words)) == words


@given(text=ANY_TEXT, length=st.integers(1, 12))
@any_case
def test_a_shorter_truncated_row_is_a_prefix_of_a_longer_one(bert, text, length):
    long = bert.encode(text, length=length + 3).ids
    np.testing.assert_array_equal(bert.encode(text, length=length).ids, long[:length])


@given(texts=st.lists(ANY_TEXT, max_size=4), length=st.integers(1, 8), reduction=st.sampled_from(REDUCTIONS))
@any_case
def test_a_batch_is_its_captions_and_counts_the_cut_ones(bert, texts, length, reduction):
    generator = rng()
    rows = [bert.encode(text, length=length, reduction=reduction, rng=generator) for text in texts]
    batch = bert(texts, length=length, reduction=reduction, rng=rng())
    assert batch.ids.shape == (len(texts), length)
    assert batch.ids.tolist() == [row.ids.tolist() for row in rows]
    assert batch.truncated == sum(row.is_truncated for row in rows)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Dog\tcat\u00a0x\u3000y", ["dog", "cat", "x", "y"]),
        ("dog\x00cat dog\x07cat", ["dog", "cat", "dog", "cat"]),
        ("so\u00adft\u200bhy\ufeffphen\U000e0041", ["softhyphen"]),
        ("Ⅷ ﬁ ½ ™ …", ["viii", "fi", "1⁄2", "tm", ".", ".", "."]),
        ("a$b 犬猫", ["a", "$", "b", "犬", "猫"]),
        ("I\u0307 e\u0301 É ᾳ", ["i", "e", "e", "αι"]),
        ("\ud800x", ["\ufffdx"]),
        (b"caf\xe9 \xff", ["caf\ufffd", "\ufffd"]),
        ("dog\u2028cat\u1680", ["dog\ufffdcat\ufffd"]),
        ("\u0600x", ["x"]),
    ],
)
def test_words_after_normalization(text, words):
    assert split_words(text) == words


@pytest.mark.parametrize(
    ("word", "is_unknown"), [("b" * 100, False), ("b" * 101, True), ("ж" * 50, False), ("ж" * 51, True)]
)
def test_a_word_of_more_than_100_bytes_is_unknown(bert, word, is_unknown):
    assert (bert.words(word) == [[bert.unk_id]]) == is_unknown


# Reductions

WORDS = [[1], [2, 3], [4], [5, 6, 7], [8]]
CLASSES = bytes([4, 3, 1, 4, 1, 2, 4, 4, 1])


def test_syntax_prefers_nouns_then_adjectives_and_keeps_the_order():
    kept = {room: keep_by_class(WORDS, classes=CLASSES, room=room) for room in (1, 2, 3, 4, 5)}
    assert kept == {
        1: [[2, 3]],
        2: [[2, 3], [4]],
        3: [[2, 3], [4], [8]],
        4: [[2, 3], [4], [5, 6, 7], [8]],
        5: WORDS,
    }


def test_syntax_counts_words_and_then_cuts_pieces():
    assert reduce_words(WORDS, room=3, reduction="syntax", classes=CLASSES, rng=None) == [2, 3, 4]
    assert reduce_words(WORDS, room=5, reduction="syntax", classes=CLASSES, rng=None) == [1, 2, 3, 4, 5]


def test_random_reaches_every_subset_of_the_pieces():
    generator = rng()
    kept = [
        tuple(reduce_words([[1], [2, 3], [4]], room=2, reduction="random", classes=CLASSES, rng=generator))
        for _ in range(600)
    ]
    counts = {pair: kept.count(pair) for pair in itertools.combinations([1, 2, 3, 4], 2)}
    assert sum(counts.values()) == 600
    assert min(counts.values()) > 60


def test_block_reaches_every_start_also_the_last():
    generator = rng()
    kept = [
        tuple(reduce_words([[1], [2, 3], [4]], room=2, reduction="block", classes=CLASSES, rng=generator))
        for _ in range(600)
    ]
    counts = {pair: kept.count(pair) for pair in [(1, 2), (2, 3), (3, 4)]}
    assert sum(counts.values()) == 600
    assert min(counts.values()) > 150


@given(n=st.integers(1, 30), room=st.integers(0, 30), seed=st.integers(0, 100))
@any_case
def test_a_block_is_contiguous(n, room, seed):
    kept = reduce_words([[i] for i in range(n)], room=room, reduction="block", classes=bytes(n), rng=rng(seed))
    assert len(kept) == min(n, room)
    assert kept == list(range(kept[0], kept[0] + len(kept))) if kept else room == 0


def test_a_block_may_end_at_the_last_piece():
    assert keep_block([1, 2, 3, 4], start=2, room=2) == [3, 4]


def test_captions_that_fit_use_no_random_numbers(bert):
    """So adding one does not change how the others are shortened."""
    long = "one two three four five six seven eight nine"
    alone = bert([long], length=4, reduction="random", rng=rng()).ids[0]
    after = bert(["a dog", long], length=4, reduction="random", rng=rng()).ids[1]
    np.testing.assert_array_equal(alone, after)


@pytest.mark.parametrize("reduction", ["random", "block"])
def test_a_random_reduction_without_rng_is_refused_even_if_nothing_is_cut(bert, reduction):
    with pytest.raises(ConfigError, match="rng"):
        bert.encode("a dog", length=8, reduction=reduction)


@pytest.mark.parametrize("length", [0, -3])
def test_a_row_without_room_for_cls_is_refused(bert, length):
    with pytest.raises(ConfigError, match=f"length is {length}"):
        bert([], length=length)


def test_one_bare_string_is_not_a_batch(bert):
    with pytest.raises(DataError, match="single caption"):
        bert("a dog", length=8)


# Round trips and files


def test_decode_joins_pieces_and_omits_padding(bert):
    ids = bert.encode("A Photo of snowboarders, é!", length=16).ids
    assert bert.decode(ids) == "a photo of snowboarders , e !"
    assert bert.decode(ids[:1]) == ""


def test_decode_refuses_ids_of_another_vocabulary(bert):
    with pytest.raises(DataError, match="30522"):
        bert.decode([101, 30522])


def test_a_pickled_tokenizer_is_small_and_gives_the_same_ids(bert):
    bert.encode("warm the cache", length=8)
    copy = pickle.loads(pickle.dumps(bert))
    assert set(vars(copy)) == {"pieces", "classes", "unclassified"}
    assert copy == bert
    assert copy.words("the naïve snowboarder") == bert.words("the naïve snowboarder")


def test_a_saved_tokenizer_loads_with_the_same_behavior(bert, tmp_path):
    bert.save(tmp_path / "tokenizer")
    loaded = Tokenizer.load(tmp_path / "tokenizer")
    assert loaded == bert
    assert (loaded.unclassified, loaded.vocab_sha256) == (0, bert.vocab_sha256)


def test_pieces_unknown_to_the_shipped_table_are_reported_and_count_as_other(bert, tmp_path):
    write_vocab(SMALL, tmp_path / "vocab.txt")
    small = Tokenizer.from_file(str(tmp_path / "vocab.txt"))
    expected = dict(zip(bert.pieces, bert.classes, strict=True))
    assert small.unclassified == 2
    assert list(small.classes) == [expected.get(piece, 4) for piece in SMALL]
    assert (small.vocab_size, small.pad_id, small.unk_id, small.cls_id) == (8, 0, 1, 2)
    assert small.words("Dogs cat") == [[4, 5], [1]]


def test_windows_line_ends_and_a_missing_last_one_are_read(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(SMALL).encode())
    assert Tokenizer.from_file(tmp_path / "vocab.txt").pieces == SMALL


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[PAD]\n[UNK]\na\n", r"\[CLS\]"),
        (b"[PAD]\n[UNK]\n[CLS]\na\nb\na\n", "'a' appears twice"),
        (b"[UNK]\n[PAD]\n[CLS]\n", r"\[PAD\] has id 1, expected 0"),
        (b"[PAD]\n[UNK]\n[CLS]\n\na\n", r"piece 3 \(line 4\) is ''"),
        (b"[PAD]\n[UNK]\n[CLS]\ntwo words\n", "two words"),
        (b"\xff\xfe", "UTF-8"),
        (b"", "piece 0"),
    ],
)
def test_an_unusable_vocabulary_is_one_clear_error_with_its_path(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        Tokenizer.from_file(path)
    assert str(path) in str(caught.value)


def test_a_missing_vocabulary_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        Tokenizer.from_file(tmp_path / "nowhere.txt")
    with pytest.raises(DataError, match="directory"):
        Tokenizer.from_file(tmp_path)


@pytest.mark.parametrize("about", [None, "{", "[]", '{"kind": "other", "version": 1}'])
def test_a_foreign_folder_is_refused(bert, tmp_path, about):
    bert.save(tmp_path)
    (tmp_path / "about.json").unlink()
    if about is not None:
        (tmp_path / "about.json").write_text(about)
    with pytest.raises(DataError, match=r"about\.json"):
        Tokenizer.load(tmp_path)


def test_an_altered_vocabulary_in_a_saved_folder_is_refused(bert, tmp_path):
    bert.save(tmp_path)
    write_vocab(SMALL, tmp_path / "vocab.txt")
    with pytest.raises(DataError, match="altered"):
        Tokenizer.load(tmp_path)


def test_a_class_table_of_the_wrong_size_is_refused(bert):
    with pytest.raises(DataError, match="2 classes"):
        dataclasses.replace(bert, classes=b"\1\2")


def test_the_tokenizer_imports_no_framework():
    program = (
        "import sys, clipa_eqx.tokenizer.train, clipa_eqx.tokenizer.wordpiece;"
        "print(*{'jax', 'grain', 'torch', 'tensorflow', 'nltk', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == []
