"""Vocabulary of an open_clip folder, accepted only if our tokenizer gives the same ids with it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from clipa_eqx.errors import ConversionError
from clipa_eqx.json_files import read_json_object
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.tokenizer.vocabulary import CLASS, SPECIAL, check_vocab, look_up_classes, read_vocab, warn_of_case
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from conversion.open_clip.config import CONFIG_FILE, OpenClipConfig
from conversion.open_clip.mapping import BERT_NAME
from conversion.open_clip.tokenizer import (
    JSON_FILE,
    SETTINGS_FILE,
    VOCAB_FILE,
    json_pieces,
    load_tokenizer_json,
    tokenizer_json,
)
from conversion.weights.choices import GIVE_VOCAB
from conversion.weights.formats import TextRules

_CLASSES = ("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast")
_METADATA = "clipa_eqx_rules"
_FOLDING = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
# The rules of a tokenizer do not depend on the vocabulary, so a small one is enough to compare them.
_SMALL = Tokenizer(pieces=SPECIAL, classes=bytes(len(SPECIAL)))


class Vocabulary(NamedTuple):
    """A tokenizer, and the origin of its vocabulary."""

    tokenizer: Tokenizer
    origin: str


def own_vocabulary(folder: Path, config: OpenClipConfig | None, *, rows: int) -> Vocabulary:
    """The vocabulary of a model's folder; BERT's if the config names it or there is no config.

    Args:
        folder: the model's folder.
        config: its config, if there is one.
        rows: rows of the token table.

    Raises:
        ConversionError: another tokenizer than BERT's uncased is named; the folder's files contradict each other or
            describe another tokenizer than uncased WordPiece; or there are more pieces than rows.
        DataError: ``vocab.txt`` is not a valid vocabulary.
    """
    if config is None:
        return Vocabulary(load_tokenizer(None, model_vocab=rows, remedy=GIVE_VOCAB), "BERT's, as no file names another")
    problems: list[str] = []
    if config.tokenizer.name != BERT_NAME:
        problems.append(f"{CONFIG_FILE} names the tokenizer {config.tokenizer.name!r}, expected {BERT_NAME!r}")
    pieces: tuple[str, ...] | None = None
    origin = f"BERT's, which {CONFIG_FILE} names"
    if (folder / VOCAB_FILE).is_file():
        pieces, origin = read_vocab(folder / VOCAB_FILE), VOCAB_FILE
        check_vocab(pieces, where=str(folder / VOCAB_FILE))
    if (folder / JSON_FILE).is_file():
        theirs = json_pieces(folder / JSON_FILE)
        if pieces is None:
            check_vocab(theirs, where=str(folder / JSON_FILE))
            pieces, origin = theirs, JSON_FILE
        elif pieces != theirs:
            problems.append(
                f"{VOCAB_FILE} and {JSON_FILE} hold different vocabularies; open_clip uses that of {JSON_FILE}"
            )
        problems += _json_problems(folder / JSON_FILE)
    problems += _settings_problems(folder / SETTINGS_FILE)
    if problems:
        raise ConversionError(
            f"{folder}: our tokenizer may give other ids than this one; give the vocabulary with --vocab if our rules "
            "are right for it:\n  " + "\n  ".join(problems)
        )
    if pieces is None:
        return Vocabulary(load_tokenizer(None, model_vocab=rows, remedy=GIVE_VOCAB), origin)
    if len(pieces) > rows:
        raise ConversionError(
            f"the token table has {rows} rows, the vocabulary of {folder / origin} {len(pieces)} pieces; {GIVE_VOCAB}"
        )
    warn_of_case(pieces, where=str(folder / origin))
    classes, unclassified = look_up_classes(pieces)
    return Vocabulary(Tokenizer(pieces=pieces, classes=classes, unclassified=unclassified), origin)


def own_rules(folder: Path, config: OpenClipConfig | None, metadata: Mapping[str, str]) -> TextRules:
    """The rules by which an open_clip model's texts are split: BERT's, unless its files record the reference's.

    Args:
        folder: the model's folder.
        config: its config, if there is one.
        metadata: metadata of the weight file, where our export records the rules.
    """
    if config is None:
        return "reference" if metadata.get(_METADATA) == "reference" else "bert"
    if not (folder / JSON_FILE).is_file():
        return "bert"
    try:
        found = _rules(load_tokenizer_json(folder / JSON_FILE))
    except ConversionError:
        return "reference"  # only with --vocab, which states that our rules are right
    return "bert" if found == _rules(tokenizer_json(_SMALL, as_reference=False)) else "reference"


def rules_metadata(rules: TextRules) -> dict[str, str]:
    """The metadata that ``own_rules`` reads."""
    return {_METADATA: rules}


def _json_problems(file: Path) -> list[str]:
    """Differences of a ``tokenizer.json`` from both BERT's uncased one and the one that our export writes."""
    made = load_tokenizer_json(file)
    theirs = _rules(made)
    kind = theirs["model"]["type"]
    if kind != "WordPiece":
        return [f"{JSON_FILE} holds a {kind}, expected WordPiece"]
    known = [_rules(tokenizer_json(_SMALL, as_reference=is_ours)) for is_ours in (False, True)]
    problems = [
        f"{JSON_FILE}: its {what} is {json.dumps(theirs[what])[:200]}, expected that of BERT's uncased tokenizer"
        for what in theirs
        if all(theirs[what] != one[what] for one in known)
    ]
    added = [one.content for one in made.get_added_tokens_decoder().values() if one.content not in SPECIAL]
    if added:
        problems.append(f"{JSON_FILE} adds the tokens {', '.join(map(repr, added[:5]))}, which our tokenizer splits")
    framed = made.encode("").tokens
    if framed not in ([CLASS], [CLASS, "[SEP]"]):
        problems.append(
            f"{JSON_FILE} makes {framed} of an empty text, expected {CLASS} first and [SEP] or nothing last"
        )
    return problems


def _rules(made: Any) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(made.to_str())
    rules = {name: about[name] for name in ("model", "normalizer", "pre_tokenizer")}
    rules["model"] = {key: value for key, value in rules["model"].items() if key != "vocab"}
    normalizer = rules["normalizer"]
    if isinstance(normalizer, dict) and cast("dict[str, Any]", normalizer).get("strip_accents") is True:
        # The default: accents are stripped together with lower-casing.
        rules["normalizer"] = {**cast("dict[str, Any]", normalizer), "strip_accents": None}
    return rules


def _settings_problems(file: Path) -> list[str]:
    """Unsupported settings of a ``tokenizer_config.json``, which override the normalizer of ``tokenizer.json``."""
    if not file.is_file():
        return []
    settings = read_json_object(file, error=ConversionError, hint="give the settings that transformers wrote")
    problems = [
        f"{SETTINGS_FILE}: {name} is {settings[name]!r}, expected true"
        for name in _FOLDING
        if settings.get(name) not in (None, True)
    ]
    if settings.get("tokenizer_class") not in (None, *_CLASSES):
        problems.append(f"{SETTINGS_FILE}: the class is {settings['tokenizer_class']!r}, expected {_CLASSES[0]}")
    return problems
