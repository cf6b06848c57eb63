"""Checks of the captions that a user passes: tables have None and NaN in the place of texts."""

from collections.abc import Sequence
from typing import cast

from clipa_eqx.errors import DataError, counted


def check_text(text: object, *, where: str) -> None:
    """Check that a caption is a string (or UTF-8 bytes).

    Raises:
        DataError: it is something else.
    """
    if not isinstance(text, str | bytes):
        raise DataError(f"{where}: the caption is {_shown(text)}, expected a string; a list of them needs a call")


def check_texts(texts: object, *, where: str) -> None:
    """Check that texts are a sequence of strings (or UTF-8 bytes).

    Raises:
        DataError: one string, no sequence, or elements that are no text (None and NaN, as tables have them); one
            message names the first of them and their number.
    """
    if isinstance(texts, str | bytes):
        raise DataError(f"{where}: got the single caption {texts[:40]!r}; pass a list, or call encode")
    if not isinstance(texts, Sequence) and not (hasattr(texts, "__len__") and hasattr(texts, "__getitem__")):
        raise DataError(f"{where}: got {type(texts).__name__}, expected a list of captions; pass list(...)")
    found: list[object] = list(cast("Sequence[object]", texts))
    wrong = [index for index, text in enumerate(found) if not isinstance(text, str | bytes)]
    if wrong:
        raise DataError(
            f"{where}: texts[{wrong[0]}] is {_shown(found[wrong[0]])}, expected a string; {len(wrong)} of "
            f"{counted(len(found), 'text')} are no strings ({', '.join(map(str, wrong[:10]))}"
            f"{', ...' if len(wrong) > 10 else ''}). Leave these rows out, or use '' for them"
        )


def _shown(value: object) -> str:
    shown = repr(value)
    return f"{shown[:40]}{'...' if len(shown) > 40 else ''} ({type(value).__name__})"
