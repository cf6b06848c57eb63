"""Ids of rows as 128 bits: the same for every form in which a source and the file of a subset may write one id."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt64

from conversion.records.rows import short_key

Form = Literal["uids", "numbers", "texts"]
"""What a file of ids holds: numbers of 128 bits, whole numbers, or texts."""

Ids = UInt64[np.ndarray, "ids 2"]
"""The upper and the lower 64 bits of each id."""

Values = Shaped[np.ndarray, " ids"] | Ids | Sequence[bytes]


class Chunk(NamedTuple):
    """Some ids of a file in order.

    Attributes:
        ids: the ids that are not missing.
        values: each of them as the file has it; a pair of numbers is a row of ``ids``.
        missing: number of empty texts and nulls.
    """

    ids: Ids
    values: Values
    missing: int = 0


EXPECTED: dict[Form, str] = {
    "uids": "128-bit uids (texts of 32 hexadecimal digits, or 16 bytes)",
    "numbers": "whole numbers",
    "texts": "texts",
}

_DIGITS = re.compile(r"[+-]?[0-9]{1,40}")
_UID_DIGITS, _UID_BYTES = 32, 16
_LONGEST_EXACT = 2**53  # whole numbers up to here are exact as fractions
_LONGEST_KEY = 300  # bytes; longer texts may be shortened as keys are
_LEAST, _MOST = -(2**63), 2**64 - 1  # of the whole numbers that a file can hold
_IN_NO_FILE = (2**126).to_bytes(16, "big")  # the id of a whole number that no file can hold


def id_of(value: object, form: Form) -> bytes | None:
    """The id in a value of a source as 16 bytes; None if the value is no id of this form.

    - uids: a text of 32 hexadecimal digits in upper or lower case, or 16 bytes.
    - numbers: a whole number, also as a fraction such as 12.0, or a text of decimal digits such as "0012".
    - texts: a text that is not empty, or a whole number, which is the text of its digits. Texts of 32 hexadecimal
      digits in upper and lower case are equal. All other texts are equal if each byte is.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return value if form == "uids" and len(value) == _UID_BYTES else None
    if form == "uids":
        return _uid_of(value) if isinstance(value, str) else None
    if form == "numbers":
        number = _number_of(value)
        if number is None:
            return None
        return number.to_bytes(16, "big", signed=True) if _LEAST <= number <= _MOST else _IN_NO_FILE
    if isinstance(value, str):
        text = _encoded(value)
        return text_id(text) if text else None
    number = _number_of(value)
    return None if number is None else text_id(str(number).encode())


def shows_form(value: object, form: Form) -> bool:
    """Check whether a value shows that its column holds ids of a form.

    16 printable ASCII characters do not: they may be the bytes of a uid, but most likely they are a text.
    """
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    if form == "uids" and isinstance(text, str) and len(text) == _UID_BYTES and text.isascii() and text.isprintable():
        return False
    return id_of(value, form) is not None


def text_id(text: bytes) -> bytes:
    """The id of a text in UTF-8: the number of 32 hexadecimal digits, else 128 bits of its SHA-256.

    A text of more than 300 characters has the id of the key that a record would have.
    """
    if len(text) == _UID_DIGITS and (uid := _from_digits(text)) is not None:
        return uid
    if len(text) > _LONGEST_KEY:
        text = short_key(text.decode(errors="surrogateescape")).encode(errors="surrogateescape")
    return hashlib.sha256(text).digest()[:16]


def unpack_ids(ids: Iterable[bytes]) -> Ids:
    """The ids of 16 bytes each as numbers."""
    return np.frombuffer(b"".join(ids), ">u8").reshape(-1, 2).astype(np.uint64)


def chunk_of_texts(values: Sequence[str | bytes | None]) -> Chunk:
    """The ids of texts; empty ones and None are missing."""
    texts = [text.encode(errors="surrogatepass") if isinstance(text, str) else text for text in values if text]
    return Chunk(unpack_ids(map(text_id, texts)), texts, len(values) - len(texts))


def ids_of_numbers(numbers: np.ndarray) -> Ids:
    """The ids of an array of whole numbers: their two's complement in 128 bits."""
    ids = np.zeros((len(numbers), 2), np.uint64)
    if numbers.dtype.kind == "i":
        ids[numbers < 0, 0] = np.iinfo(np.uint64).max
        ids[:, 1] = numbers.astype(np.int64).view(np.uint64)
    else:
        ids[:, 1] = numbers
    return ids


def mixed(ids: Ids) -> Ids:
    """The ids with their bits mixed one to one, so that ids of any pattern, such as consecutive ones, spread evenly."""
    high, low = ids[:, 0], ids[:, 1]
    low = low ^ _scattered(high)
    return np.stack([high ^ _scattered(low), low], axis=1)


def _scattered(numbers: UInt64[np.ndarray, " ids"]) -> UInt64[np.ndarray, " ids"]:
    """The finalizer of the generator SplitMix64, which maps 64 bits one to one."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _uid_of(text: str) -> bytes | None:
    raw = _encoded(text)
    if raw is None or len(raw) == _UID_BYTES:  # 16 bytes may happen to be a valid text
        return raw
    return _from_digits(raw) if len(raw) == _UID_DIGITS else None


def _encoded(text: str) -> bytes | None:
    try:
        return text.encode()
    except UnicodeEncodeError:  # marks of bytes that were not UTF-8
        return None


def _from_digits(text: bytes) -> bytes | None:
    """The 16 bytes of 32 hexadecimal digits; None for another text."""
    try:
        uid = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return None
    return uid if len(uid) == _UID_BYTES else None  # white space between digits is skipped


def _number_of(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) <= _LONGEST_EXACT:
        return int(value)
    return int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else None
