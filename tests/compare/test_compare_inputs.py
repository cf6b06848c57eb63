"""Guards the causes that are reported when two models tokenize or prepare images differently."""

import dataclasses

import numpy as np
import pytest
from support.comparison import LENGTH, SIZE, TEXT, compared, named
from support.open_clip_folders import edit_config, set_in

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.saved.model import save_model
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from conversion.compare import texts as compare_texts
from conversion.open_clip.tokenizer import write_tokenizer

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_open_clips_own_tokenizer_is_distinguished_from_ours(folders, theirs, tmp_path):
    write_tokenizer(theirs, Tokenizer.bert(), length=LENGTH, as_reference=False)
    report = compared(folders / "ours", theirs, tmp_path)
    assert report["first"]["where"] == "tokenization"
    assert named(report) == {compare_texts.NORMALIZATION, compare_texts.SEP_PLACE}
    edit_config(theirs, set_in(*TEXT, tokenizer_kwargs={}))
    report = compared(folders / "ours", theirs, tmp_path)
    assert named(report) == {compare_texts.NORMALIZATION, compare_texts.SEP_KEPT}
    report = compared(theirs, folders / "ours", tmp_path)
    assert compare_texts.SEP_KEPT in named(report)


def test_the_settings_of_a_side_follow_from_its_tokenizer_file(folders, theirs, tmp_path):
    """A is our export: it has neither open_clip's normalization nor its place for SEP."""
    write_tokenizer(theirs, Tokenizer.bert(), length=LENGTH, as_reference=False)
    report = compared(folders / "theirs", theirs, tmp_path)
    assert named(report) == {compare_texts.NORMALIZATION, compare_texts.SEP_PLACE}
    assert named(compared(theirs, folders / "theirs", tmp_path)) == named(report)


def test_no_cause_is_reported_if_no_known_settings_give_the_ids_of_a(folders, tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 99, (len(compare_texts.FIXED_TEXTS), LENGTH))
    np.savez(tmp_path / "tokens.npz", tokens=ids)
    flags = ["--recorded-a", tmp_path / "tokens.npz"]
    report = compared(folders / "ours", folders / "ours", tmp_path, *flags)
    assert report["first"]["where"] == "tokenization"
    assert named(report) == {"unexplained"}


def test_another_vocabulary_is_the_cause(folders, theirs, tmp_path):
    pieces = list(Tokenizer.bert().pieces)
    dog, photo = pieces.index("dog"), pieces.index("photo")
    pieces[dog], pieces[photo] = pieces[photo], pieces[dog]
    write_tokenizer(
        theirs, dataclasses.replace(Tokenizer.bert(), pieces=tuple(pieces)), length=LENGTH, as_reference=True
    )
    report = compared(folders / "ours", theirs, tmp_path)
    assert named(report) == {compare_texts.VOCABULARY}


def test_an_unknown_tokenizer_option_is_reported_and_texts_are_not_compared(folders, theirs, tmp_path):
    edit_config(theirs, set_in(*TEXT, tokenizer_kwargs={"strip_sep_token": True, "clean": "canonicalize"}))
    report = compared(folders / "ours", theirs, tmp_path)
    assert any("tokenizer_kwargs.clean" in note for note in report["b"]["notes"])
    assert any("is not recorded" in note for note in report["notes"])


def test_a_vocabulary_alone_has_berts_rules(folders, theirs, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (theirs / name).unlink()
    assert named(compared(folders / "ours", theirs, tmp_path)) == {
        compare_texts.NORMALIZATION,
        compare_texts.SEP_PLACE,
    }


def test_mode_fast_is_used_and_reported(model, folders, tmp_path):
    fast = EvalImageConfig(size=SIZE, resize="squash", mode="fast")
    save_model(tmp_path / "fast", model, tokenizer=Tokenizer.bert(), preprocess=fast, provenance={})
    report = compared(folders / "ours", tmp_path / "fast", tmp_path)
    assert any("mode fast" in note for note in report["b"]["notes"])
    assert report["a"]["notes"] == []
    # One level, because the fixed images are not JPEGs.
    assert any(note.startswith("images: pixels differ by up to 1.0 levels") for note in report["notes"])
