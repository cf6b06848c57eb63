"""Guards tokenizers of open_clip folders: those with our ids are accepted, all others refused with the difference."""

import json
import shutil

import pytest
from support.open_clip_folders import VOCAB, convert, edit_config, edit_weights, save, set_in, tiny_model
from support.random_models import random_model
from support.tiny_models import tiny_clip_config

from clipa_eqx.cli import run
from clipa_eqx.saved.provenance import Vocabulary
from clipa_eqx.tokenizer.vocabulary import write_vocab
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from conversion.open_clip.__main__ import main
from conversion.open_clip.tokenizer import write_tokenizer

pytestmark = pytest.mark.usefixtures("quick_compile", "no_self_check")

TOKENIZER = Tokenizer(pieces=VOCAB, classes=bytes([4] * len(VOCAB)))
FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")


def edit_json(name, change):
    def edit(folder):
        found = json.loads((folder / name).read_text())
        change(found)
        (folder / name).write_text(json.dumps(found))

    return edit


def swapped(folder):
    pieces = list(VOCAB)
    pieces[6], pieces[7] = pieces[7], pieces[6]
    write_vocab(pieces, folder / "vocab.txt")


def bpe(found):
    vocab = found["model"]["vocab"]
    found["model"] = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "[UNK]"}


CASED = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": False}
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
REFUSED = {
    "two vocabularies": (swapped, "vocab.txt and tokenizer.json hold different vocabularies"),
    "cased": (
        edit_json("tokenizer.json", lambda j: j.update(normalizer=CASED | {"lowercase": False})),
        "tokenizer.json: its normalizer is",
    ),
    "no splitting at punctuation": (
        edit_json("tokenizer.json", lambda j: j.update(pre_tokenizer={"type": "WhitespaceSplit"})),
        "tokenizer.json: its pre_tokenizer is",
    ),
    "byte pairs": (edit_json("tokenizer.json", bpe), "tokenizer.json holds a BPE, expected WordPiece"),
    "another prefix": (
        edit_json("tokenizer.json", lambda j: j["model"].update(continuing_subword_prefix="@@")),
        "tokenizer.json: its model is",
    ),
    "an added token": (
        edit_json("tokenizer.json", lambda j: j["added_tokens"].append({"id": 9, "content": VOCAB[9], **ADDED})),
        f"tokenizer.json adds the tokens {VOCAB[9]!r}",
    ),
    "no class token": (
        edit_json("tokenizer.json", lambda j: j.update(post_processor=None)),
        "tokenizer.json makes [] of an empty text",
    ),
    "cased settings": (
        edit_json("tokenizer_config.json", lambda j: j.update(do_lower_case=False)),
        "tokenizer_config.json: do_lower_case is False",
    ),
    "another class": (
        edit_json("tokenizer_config.json", lambda j: j.update(tokenizer_class="CLIPTokenizer")),
        "the class is 'CLIPTokenizer'",
    ),
    "another name": (
        lambda folder: edit_config(folder, set_in("model_cfg", "text_cfg", hf_tokenizer_name="bert-base-cased")),
        "names the tokenizer 'bert-base-cased', expected 'bert-base-uncased'",
    ),
    "no name": (
        lambda folder: edit_config(folder, lambda found: found["model_cfg"]["text_cfg"].pop("hf_tokenizer_name")),
        "names the tokenizer None",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_tokenizer_with_other_ids_than_ours_is_refused(case, theirs, tmp_path, capsys):
    change, words = REFUSED[case]
    change(theirs)
    argv = ["import", str(theirs), str(tmp_path / "back")]
    assert run(lambda: main(argv)) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "--vocab" in err
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("text", ["{", '{"model": 1}'])
def test_the_vocab_flag_overrides_a_file_that_cannot_be_read(text, theirs, tmp_path):
    (theirs / "tokenizer.json").write_text(text)
    loaded = convert(theirs, tmp_path / "back", "--vocab", theirs / "vocab.txt")
    assert loaded.provenance.vocabulary.rules == "reference"


def test_the_vocab_flag_overrides_the_folder(theirs, tmp_path):
    swapped(theirs)
    loaded = convert(theirs, tmp_path / "back", "--vocab", theirs / "vocab.txt")
    assert loaded.tokenizer.tokenizer.pieces[6:8] == (VOCAB[7], VOCAB[6])
    assert loaded.provenance.vocabulary.origin == "--vocab vocab.txt"


@pytest.mark.parametrize("kept", [FILES, FILES[:1], FILES[1:2]])
@pytest.mark.parametrize("as_reference", [True, False])
def test_uncased_wordpiece_is_read_from_any_of_its_files(kept, as_reference, theirs, tmp_path):
    write_tokenizer(theirs, TOKENIZER, length=8, as_reference=as_reference)
    for name in set(FILES) - set(kept):
        (theirs / name).unlink()
    loaded = convert(theirs, tmp_path / "back")
    assert loaded.tokenizer.tokenizer.pieces == VOCAB
    assert loaded.provenance.vocabulary == Vocabulary(
        sha256=TOKENIZER.vocab_sha256,
        pieces=len(VOCAB),
        origin=kept[0],
        rules="reference" if as_reference and "tokenizer.json" in kept else "bert",
    )


def test_a_vocabulary_without_sep_is_exported_with_our_rules(tmp_path):
    pieces = tuple("sepp" if piece == "[SEP]" else piece for piece in VOCAB)
    model = random_model(tiny_clip_config(blocks={"depth": 1, "gelu": "exact", "norm_eps": 1e-5}))
    folder = save(tmp_path / "model", model, provenance={"vocabulary": {"rules": "bert"}}, pieces=pieces)
    main(["export", str(folder), str(tmp_path / "theirs")])
    settings = json.loads((tmp_path / "theirs" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert convert(tmp_path / "theirs", tmp_path / "back").tokenizer.tokenizer.pieces == pieces


CLASSES = {True: "PreTrainedTokenizerFast", False: "BertTokenizer"}


@pytest.mark.parametrize("as_reference", [True, False])
@pytest.mark.parametrize("gelu", ["exact", "tanh"])
def test_the_rules_of_the_source_are_exported_again_whatever_the_numerics(as_reference, gelu, tmp_path):
    """Also from the weight file alone, whose metadata record them."""
    model = random_model(tiny_clip_config(blocks={"depth": 1, "gelu": gelu}))
    main(["export", str(save(tmp_path / "model", model)), str(tmp_path / "theirs")])
    assert tokenizer_class(tmp_path / "theirs") == CLASSES[True]
    write_tokenizer(tmp_path / "theirs", TOKENIZER, length=8, as_reference=as_reference)
    convert(tmp_path / "theirs", tmp_path / "back")
    main(["export", str(tmp_path / "back"), str(tmp_path / "again")])
    assert tokenizer_class(tmp_path / "again") == CLASSES[as_reference]
    alone = shutil.copy(tmp_path / "again" / "open_clip_model.safetensors", tmp_path / "weights.safetensors")
    flags = ["--config", tmp_path / "model" / "config.json", "--vocab", tmp_path / "again" / "vocab.txt"]
    loaded = convert(alone, tmp_path / "alone", *flags)
    assert loaded.provenance.vocabulary.rules == ("reference" if as_reference else "bert")


def tokenizer_class(folder):
    return json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"]


def test_a_foreign_weight_file_alone_has_the_rules_of_open_clip(theirs, tmp_path):
    edit_weights(theirs, lambda tensors: None)
    flags = ["--config", theirs.parent / "config.json", "--vocab", theirs / "vocab.txt", "--profile", "open_clip"]
    save(tmp_path / "model", tiny_model())
    shutil.copy(tmp_path / "model" / "config.json", theirs.parent / "config.json")
    shutil.move(theirs / "open_clip_model.safetensors", tmp_path / "weights.safetensors")
    assert convert(tmp_path / "weights.safetensors", tmp_path / "back", *flags).provenance.vocabulary.rules == "bert"
