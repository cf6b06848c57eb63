"""The warning about texts that a vocabulary cannot spell."""

import logging

_MANY = 0.1

_log = logging.getLogger(__name__)


def warn_of_unknown(texts: str, *, unknown: int, pieces: int, vocabulary: str, advice: str) -> None:
    """Log a warning if more than a tenth of the word pieces of some texts are [UNK].

    Args:
        texts: description of the texts, in the plural.
        unknown: number of their pieces that are [UNK].
        pieces: number of their pieces, without [CLS] and padding.
        vocabulary: description of the vocabulary.
        advice: what to do, the end of the message.
    """
    if unknown > _MANY * pieces:
        _log.warning(
            "%.0f %% of the word pieces of the %s are [UNK]: %s cannot spell these words, so that all of them are the "
            "same token to the text tower. %s",
            100 * unknown / pieces,
            texts,
            vocabulary,
            advice,
        )
