"""Our tokenizer as the files that open_clip, by way of transformers, loads from a folder."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers, pre_tokenizers, processors

from clipa_eqx.tokenizer import Tokenizer
from clipa_eqx.tokenizer.vocabulary import CLASS, PAD, UNKNOWN, write_vocab
from conversion.compare_texts import bert_tokenizer

SEP = "[SEP]"
VOCAB_FILE, JSON_FILE, SETTINGS_FILE = "vocab.txt", "tokenizer.json", "tokenizer_config.json"

# Code points that the reference deletes, as ranges of the regular expressions of the library.
_IGNORABLE = (
    r"[\u00AD\u034F\u061C\u115F\u1160\u17B4\u17B5\u180B-\u180F\u200B-\u200F\u202A-\u202E\u2060-\u206F\u3164"
    r"\uFE00-\uFE0F\uFEFF\uFFA0\uFFF0-\uFFF8]"
)


def write_tokenizer(folder: Path, tokenizer: Tokenizer, *, length: int, as_reference: bool) -> None:
    """Write vocabulary, tokenizer and settings.

    Args:
        as_reference: ids of tensorflow-text's normalisation, ``length - 1`` pieces and no place for [SEP], as our own
            tokenizer and so as the weights were trained; else those of ``bert-base-uncased``, as open_clip's twins of
            the released models have them.
    """
    write_vocab(tokenizer.pieces, folder / VOCAB_FILE)
    tokenizer_json(tokenizer, as_reference=as_reference).save(str(folder / JSON_FILE))
    special = {"pad_token": PAD, "unk_token": UNKNOWN, "cls_token": CLASS}
    special |= {
        name: token for name, token in (("sep_token", SEP), ("mask_token", "[MASK]")) if token in tokenizer.pieces
    }
    settings: dict[str, Any] = {
        # The plain class takes the JSON as it is; BertTokenizer would put its own normaliser in place.
        "tokenizer_class": "PreTrainedTokenizerFast" if as_reference else "BertTokenizer",
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    if not as_reference:
        settings |= {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def tokenizer_json(tokenizer: Tokenizer, *, as_reference: bool) -> Any:
    """The library's tokenizer that is written as ``tokenizer.json``, see ``write_tokenizer``; BERT's needs [SEP]."""
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
    """The reference's rules (``tokenizer.normalise``) as far as the library can say them."""
    vocab = {piece: i for i, piece in enumerate(tokenizer.pieces)}
    made: Any = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token=UNKNOWN))
    made.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(tokenizers.Regex(_IGNORABLE), ""),
            normalizers.Replace(tokenizers.Regex(r"[\p{Cc}\p{Cf}]"), " "),
            normalizers.NFKC(),
            normalizers.Lowercase(),
            # Case folding where it is more than lower case.
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
