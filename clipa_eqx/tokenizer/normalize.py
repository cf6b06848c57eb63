"""Normalization of captions to lower-case words, exactly as tensorflow-text's BertTokenizer(lower_case=True).

The rules are those of the reference's tokenizer (``bert_ops`` of CLIPA's data transforms, which calls tensorflow-text):
NFKC case folding, NFD, removal of non-spacing marks, control characters to spaces, then a split around white space,
punctuation and CJK ideographs. Each rule acts on one code point, so the complete normalization is one
``str.translate`` with a table that is filled on demand. Categories of code points come from Python's Unicode tables.
"""

import unicodedata

REPLACEMENT = "\ufffd"

# Code points that NFKC case folding deletes (Unicode property Default_Ignorable_Code_Point).
_IGNORABLE = (
    (0x00AD, 0x00AD),
    (0x034F, 0x034F),
    (0x061C, 0x061C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)
# Blocks in which each code point is a word.
_IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
# Printable ASCII that is neither letter, digit nor space counts as punctuation, also ``$+<=>^|~`` and the backtick.
_ASCII_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def split_words(text: str | bytes) -> list[str]:
    """Split a caption into normalized words; punctuation marks and ideographs are words of one character.

    Bytes are decoded as UTF-8; every invalid part becomes U+FFFD, which no vocabulary has. Never raises.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    return text.translate(_TABLE).split()


class _Table(dict[int, str]):
    """Normalized text by code point, filled on demand."""

    def __missing__(self, code: int) -> str:
        self[code] = value = "".join(map(_separate, unicodedata.normalize("NFD", _fold(code))))
        return value


def _fold(code: int) -> str:
    """NFKC_Casefold of one code point: fold and compose until nothing changes, and delete ignorable code points."""
    if 0xD800 <= code <= 0xDFFF:  # half of a surrogate pair: not a character, and UTF-8 cannot carry it
        return REPLACEMENT
    text, previous = unicodedata.normalize("NFD", chr(code)), ""
    while text != previous:
        previous = text
        text = unicodedata.normalize("NFKC", text.casefold())
        text = "".join(c for c in text if not _is_within(ord(c), _IGNORABLE))
    return text


def _separate(char: str) -> str:
    """Replacement of one decomposed character: nothing, a space, the character between spaces, or itself."""
    category = unicodedata.category(char)
    if category == "Mn":
        return ""
    if category in ("Cc", "Cf"):
        return " "
    if category[0] == "P" or char in _ASCII_PUNCTUATION or _is_within(ord(char), _IDEOGRAPHS):
        return f" {char} "
    # The reference splits at ASCII white space only. The few other spaces that folding keeps (U+1680, U+2028, U+2029)
    # stay inside their word and make it unknown. str.split would split there, so another unknown character replaces
    # them.
    return REPLACEMENT if char.isspace() and char != " " else char


def _is_within(code: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= code <= last for first, last in ranges)


_TABLE = _Table()
