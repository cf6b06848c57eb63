"""Encodings of lists: messages for those that are not UTF-8, as Excel writes them."""

import codecs
from dataclasses import dataclass, field

from clipa_eqx.errors import DataError

_FEWEST = 3  # texts that are not UTF-8: fewer may be damage of single rows
_UNUSED_IN_CP1252 = frozenset(b"\x81\x8d\x8f\x90\x9d")


@dataclass(kw_only=True)
class Encoding:
    """Counts of the texts of a file, between line ends and quotes, that are not ASCII.

    Attributes:
        valid: those that are UTF-8.
        broken: those that are not.
        first: number of the line with the first broken text.
        held: the bytes beyond ASCII of the first broken texts.
    """

    valid: int = 0
    broken: int = 0
    first: int = 0
    held: bytearray = field(default_factory=bytearray)
    _runs: int = 0

    def note(self, line: bytes, number: int) -> None:
        """Count the texts of a line."""
        for text in () if line.isascii() else line.split(b'"'):
            if not text.isascii():
                self._note(text, number)

    def _note(self, text: bytes, number: int) -> None:
        try:
            text.decode()
            self.valid += 1
        except UnicodeDecodeError:
            self.broken += 1
            self.first = self.first or number
            if len(self.held) < 10_000:
                self.held += bytes(byte for byte in text if byte >= 128)
                self._runs += sum(a < 128 <= b for a, b in zip(b" " + text, text, strict=False))

    def check(self, path: str) -> None:
        """Refuse a file in another encoding than UTF-8.

        Raises:
            DataError: at least three texts are not UTF-8, and no text with characters beyond ASCII is.
        """
        if self.broken < _FEWEST or self.valid:
            return
        # Characters of European languages are single bytes between ASCII letters.
        is_european = len(self.held) < 1.5 * self._runs and not _UNUSED_IN_CP1252 & set(self.held)
        if is_european:
            advice = "it looks like Windows-1252, as Excel writes; convert it by `iconv -f WINDOWS-1252 -t UTF-8`"
        else:
            advice = "convert it to UTF-8, as by `iconv -f GB18030 -t UTF-8` with the name of its encoding"
        raise DataError(
            f"{path} is not encoded in UTF-8 (byte 0x{self.held[0]:02x} in line {self.first}, the first of "
            f"{self.broken:,}); {advice}, or save it as UTF-8"
        )


def check_not_utf16(begin: bytes, path: str) -> None:
    """Refuse a file in UTF-16, by its first bytes.

    Raises:
        DataError: it begins with the mark of UTF-16, or every second byte is 0.
    """
    if begin[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise DataError(f"{path} is encoded in UTF-16; convert it to UTF-8, as by `iconv -f UTF-16 -t UTF-8`")
    for name, zeros, others in (("UTF-16LE", begin[1::2], begin[::2]), ("UTF-16BE", begin[::2], begin[1::2])):
        if len(begin) >= 4 and not any(zeros) and all(others):
            raise DataError(f"{path} is encoded in UTF-16; convert it to UTF-8, as by `iconv -f {name} -t UTF-8`")
