"""Tokenizer files of an open_clip folder, which open_clip loads through transformers: write them, read them."""

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import normalizers, pre_tokenizers, processors

from clipa_eqx.errors import ConversionError
from clipa_eqx.tokenizer.vocabulary import CLASS, PAD, UNKNOWN, read_vocab, write_vocab
from clipa_eqx.tokenizer.wordpiece import Tokenizer

SEP, MASK = "[SEP]", "[MASK]"
VOCAB_FILE, JSON_FILE, SETTINGS_FILE = "vocab.txt", "tokenizer.json", "tokenizer_config.json"

Ids = Int[np.ndarray, "texts length"]

# Code points that the reference deletes, as a regular expression of the library.
_IGNORABLE = (
    r"[\u00AD\u034F\u061C\u115F\u1160\u17B4\u17B5\u180B-\u180F\u200B-\u200F\u202A-\u202E\u2060-\u206F\u3164"
    r"\uFE00-\uFE0F\uFEFF\uFFA0\uFFF0-\uFFF8]"
)


def write_tokenizer(folder: Path, tokenizer: Tokenizer, *, length: int, as_reference: bool) -> None:
    """Write vocabulary, tokenizer and settings.

    Args:
        folder: the destination; must exist.
        tokenizer: our tokenizer.
        length: tokens of a text.
        as_reference: True for the ids of our own tokenizer: tensorflow-text's normalization, ``length - 1`` pieces and
            no place for [SEP], as the released weights were trained. False for the ids of ``bert-base-uncased``, which
            open_clip uses for its twins of the released models (docs/reference.md F4.5).
    """
    write_vocab(tokenizer.pieces, folder / VOCAB_FILE)
    tokenizer_json(tokenizer, as_reference=as_reference).save(str(folder / JSON_FILE))
    special = {"pad_token": PAD, "unk_token": UNKNOWN, "cls_token": CLASS}
    special |= {name: token for name, token in (("sep_token", SEP), ("mask_token", MASK)) if token in tokenizer.pieces}
    settings: dict[str, Any] = {
        # The plain class uses the JSON unchanged; BertTokenizer would replace the normalizer by its own.
        "tokenizer_class": "PreTrainedTokenizerFast" if as_reference else "BertTokenizer",
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    if not as_reference:
        settings |= {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def tokenizer_json(tokenizer: Tokenizer, *, as_reference: bool) -> Any:
    """The library's tokenizer that ``write_tokenizer`` saves as ``tokenizer.json``; BERT's needs [SEP]."""
    if as_reference:
        return _reference(tokenizer)
    made = bert_tokenizer(tokenizer.pieces)
    made.post_processor = processors.TemplateProcessing(
        single=f"{CLASS} $A {SEP}",
        pair=f"{CLASS} $A {SEP} $B {SEP}",
        special_tokens=[(CLASS, tokenizer.cls_id), (SEP, tokenizer.pieces.index(SEP))],
    )
    return made


def _reference(tokenizer: Tokenizer) -> Any:
    """The reference's rules (``tokenizer.normalize``), as far as the library can express them."""
    vocab = {piece: i for i, piece in enumerate(tokenizer.pieces)}
    made: Any = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token=UNKNOWN))
    made.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(tokenizers.Regex(_IGNORABLE), ""),
            normalizers.Replace(tokenizers.Regex(r"[\p{Cc}\p{Cf}]"), " "),
            normalizers.NFKC(),
            normalizers.Lowercase(),
            # Case folding beyond lower case.
            normalizers.Replace("ß", "ss"),
            normalizers.Replace("ς", "σ"),
            normalizers.NFD(),
            normalizers.Replace(tokenizers.Regex(r"\p{Mn}"), ""),
            normalizers.BertNormalizer(
                clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False
            ),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single=f"{CLASS} $A", pair=f"{CLASS} $A $B", special_tokens=[(CLASS, tokenizer.cls_id)]
    )
    return made


def bert_tokenizer(pieces: Sequence[str]) -> Any:
    """Hugging Face's ``BertTokenizer`` of a vocabulary, without special tokens around a text."""
    vocab = {piece: i for i, piece in enumerate(pieces)}
    made: Any = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token=UNKNOWN))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    special = [token for token in (PAD, UNKNOWN, CLASS, SEP, MASK) if token in vocab]
    made.add_special_tokens(special)
    return made


def clean(text: str) -> str:
    """Clean a text as open_clip does, except for the repair of broken encodings."""
    return " ".join(html.unescape(html.unescape(text)).split())


def folder_pieces(folder: Path) -> tuple[str, ...] | None:
    """The vocabulary that open_clip takes from a folder, or None. ``tokenizer.json`` overrides ``vocab.txt``.

    Raises:
        ConversionError: ``tokenizer.json`` cannot be read.
        DataError: ``vocab.txt`` cannot be read.
    """
    if (folder / JSON_FILE).is_file():
        return json_pieces(folder / JSON_FILE)
    return read_vocab(folder / VOCAB_FILE) if (folder / VOCAB_FILE).is_file() else None


def json_pieces(file: Path) -> tuple[str, ...]:
    """The vocabulary of a ``tokenizer.json``. Raises ``ConversionError`` if it cannot be read or its ids have gaps."""
    vocab: dict[str, int] = load_tokenizer_json(file).get_vocab(with_added_tokens=True)
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ConversionError(f"{file}: the ids of its vocabulary are not 0 to {len(vocab) - 1}")
    return tuple(sorted(vocab, key=lambda piece: vocab[piece]))


def load_tokenizer_json(file: Path) -> Any:
    """Load a ``tokenizer.json``. Raises ``ConversionError`` if the library cannot read it."""
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower class
        raise ConversionError(f"{file} is not a valid tokenizer file ({error})") from error


def json_tokenizer(file: Path, *, length: int, strips_sep: bool) -> Callable[[list[str]], Ids]:
    """A function that tokenizes as open_clip does with a folder's ``tokenizer.json``.

    Args:
        file: the ``tokenizer.json``.
        length: tokens of a text.
        strips_sep: replace [SEP] by padding.

    Raises:
        ConversionError: the file cannot be read.
    """
    made = load_tokenizer_json(file)
    sep: int | None = made.token_to_id(SEP)

    def tokenize(texts: list[str]) -> Ids:
        made.enable_truncation(length)
        made.enable_padding(length=length, pad_id=0)
        ids = np.array([encoded.ids for encoded in made.encode_batch([clean(text) for text in texts])], np.int64)
        return np.where(ids == sep, 0, ids) if strips_sep and sep is not None else ids

    return tokenize
