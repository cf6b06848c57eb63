"""Four ways to fit a caption of many word pieces into few tokens (CLIPA, arXiv:2305.07017, section 3).

All functions are pure: random numbers are arguments. ``room`` is the number of pieces that fit, without ``[CLS]``.
The reference's ``random`` and ``block`` (op ``custom_bert_tokenize``) first cut the pieces to the number of *words*.
Its ``random`` then leaves the pieces shuffled, and its ``block`` never keeps the last one. None of that is repeated
here (docs/reference.md D32).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from clipa_eqx.errors import ConfigError

Reduction = Literal["truncate", "syntax", "random", "block"]


def reduce_words(
    words: Sequence[Sequence[int]],
    *,
    room: int,
    reduction: Reduction,
    classes: bytes,
    rng: np.random.Generator | None,
) -> list[int]:
    """Select at most ``room`` pieces of a caption, in their original order.

    "random" and "block" use ``rng`` only if there are more than ``room`` pieces.

    Args:
        words: piece ids of each word.
        room: number of pieces that fit.
        reduction: way to select the pieces.
        classes: part-of-speech class of each piece id, for "syntax".
        rng: random generator, for "random" and "block".

    Raises:
        ConfigError: "random" or "block" without ``rng``.
    """
    if reduction == "syntax":
        words = keep_by_class(words, classes=classes, room=room)
    pieces = [piece for word in words for piece in word]
    if reduction == "truncate" or reduction == "syntax":
        return pieces[:room]
    if rng is None:
        raise ConfigError(f"reduction={reduction!r} is random and got rng=None; pass rng or use 'truncate'")
    if len(pieces) <= room:
        return pieces
    if reduction == "random":
        return keep_first_of_order(pieces, order=rng.permutation(len(pieces)).tolist(), room=room)
    return keep_block(pieces, start=int(rng.integers(len(pieces) - room + 1)), room=room)


def keep_by_class(words: Sequence[Sequence[int]], *, classes: bytes, room: int) -> Sequence[Sequence[int]]:
    """Select the ``room`` words of lowest class, in their original order; of equal classes the earlier words.

    The class of a word is that of its first piece. As the reference's ``noun_tokenize``, this counts words, not pieces:
    all words of a caption of at most ``room`` words are kept, and the pieces of the kept words may exceed ``room``.
    """
    if len(words) <= room:
        return words
    by_class = sorted(range(len(words)), key=lambda i: classes[words[i][0]])
    return [words[i] for i in sorted(by_class[:room])]


def keep_first_of_order(pieces: Sequence[int], *, order: Sequence[int], room: int) -> list[int]:
    """Select the pieces at the first ``room`` positions of the permutation ``order``, in their original order."""
    return [pieces[i] for i in sorted(order[:room])]


def keep_block(pieces: Sequence[int], *, start: int, room: int) -> list[int]:
    """Select ``room`` neighboring pieces from ``start`` on; ``start`` is 0 to ``len(pieces) - room`` inclusive."""
    return list(pieces[start : start + room])
