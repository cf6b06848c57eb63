"""The share of texts that a vocabulary cannot spell, and the warning about it."""

import logging

PACKAGED = "BERT's English vocabulary, the default,"
"""Description of the vocabulary that the package contains, the start of a sentence."""
CAPTION_ADVICE = (
    "Make a vocabulary from these captions with train_wordpiece (docs/tokenizer.md), and start a new run with its file "
    "as data.vocab and its size as model.text.vocab"
)
NAME_ADVICE = "Class names and templates must be in a language that the vocabulary was made for"

_MANY = 0.1

_log = logging.getLogger(__name__)


def unknown_warning(texts: str, *, unknown: int, pieces: int, vocabulary: str, advice: str) -> str | None:
    """The warning if more than a tenth of the word pieces of some texts are [UNK]; None otherwise.

    Args:
        texts: description of the texts, in the plural.
        unknown: number of their pieces that are [UNK].
        pieces: number of their pieces, without [CLS] and padding.
        vocabulary: description of the vocabulary.
        advice: what to do, the end of the message.
    """
    if unknown <= _MANY * pieces:
        return None
    return (
        f"{100 * unknown / pieces:.0f} % of the word pieces of the {texts} are [UNK]: {vocabulary} cannot spell these "
        f"words, so that all of them are the same token to the text tower. {advice}"
    )


def warn_of_unknown(texts: str, *, unknown: int, pieces: int, vocabulary: str, advice: str) -> None:
    """Log ``unknown_warning``, if there is one."""
    warning = unknown_warning(texts, unknown=unknown, pieces=pieces, vocabulary=vocabulary, advice=advice)
    if warning is not None:
        _log.warning("%s", warning)
