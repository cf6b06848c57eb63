"""Vocabulary files, with one word piece per line and the line number as its id; part-of-speech classes of pieces."""

import functools
import logging
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from clipa_eqx.errors import DataError, counted
from clipa_eqx.tokenizer.normalize import split_words

PAD, UNKNOWN, CLASS = "[PAD]", "[UNK]", "[CLS]"
SPECIAL = (PAD, UNKNOWN, CLASS, "[SEP]", "[MASK]")
OTHER_CLASS = 4  # 1 noun, 2 adjective, 3 verb, 4 other

_MOST_CAPITALS = 0.01

_log = logging.getLogger(__name__)


def read_vocab(path: Path) -> tuple[str, ...]:
    """Read the pieces of a vocabulary file (UTF-8 with or without a byte order mark, Unix or Windows line ends).

    Raises:
        DataError: the file cannot be read or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(
            f"vocabulary {path}: {error.strerror}; give a text file with one word piece per line"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"vocabulary {path} is not UTF-8 text: {error}; save it as UTF-8") from error
    # Not splitlines(): pieces may contain characters, such as U+2028, at which it would split.
    return tuple(text.removesuffix("\n").split("\n"))


def write_vocab(pieces: Sequence[str], path: Path | str) -> None:
    """Write pieces as a vocabulary file, with the same bytes on every machine.

    Raises:
        DataError: the pieces are unusable (see ``check_vocab``).
    """
    check_vocab(pieces, where=str(path))
    Path(path).write_bytes(serialize(pieces))


def serialize(pieces: Sequence[str]) -> bytes:
    """Format the content of a vocabulary file."""
    return "".join(f"{piece}\n" for piece in pieces).encode()


def check_vocab(pieces: Sequence[str], *, where: str) -> None:
    """Check the pieces of a vocabulary; every message starts with ``where``.

    ``[PAD]`` must have id 0, because token batches are padded with zeros and no file stores another choice.

    Raises:
        DataError: pieces are equal, empty or contain white space, or a special piece is missing or misplaced.
    """
    for i, piece in enumerate(pieces):
        if not piece or any(char.isspace() for char in piece):
            raise DataError(
                f"{where}: piece {i} (line {i + 1}) is {piece!r}; pieces must not be empty or contain white space"
            )
    ids = {piece: i for i, piece in enumerate(pieces)}
    if len(ids) != len(pieces):
        twice = next(piece for i, piece in enumerate(pieces) if ids[piece] != i)
        raise DataError(f"{where}: the piece {twice!r} appears twice; each piece must have one id, so remove one line")
    missing = [piece for piece in (PAD, UNKNOWN, CLASS) if piece not in ids]
    if missing:
        raise DataError(f"{where}: the vocabulary of {len(pieces)} pieces lacks {', '.join(missing)}; add these lines")
    if ids[PAD]:
        raise DataError(f"{where}: {PAD} has id {ids[PAD]}, expected 0; move it to the first line")


def warn_of_case(pieces: Sequence[str], *, where: str) -> None:
    """Log a warning if a vocabulary is cased: the tokenizer never makes its pieces with capitals or accents.

    A vocabulary counts as cased if more than 1 % of its pieces have capital letters.
    """
    capitals = sum(piece != piece.lower() for piece in pieces if piece not in SPECIAL)
    if capitals <= _MOST_CAPITALS * len(pieces):
        return
    bodies = [piece.removeprefix("##") for piece in pieces if piece not in SPECIAL]
    folded = sum("".join(split_words(body)) != body for body in bodies)
    _log.warning(
        "%s is a cased vocabulary: %s of its %s can never occur, because texts are lower-cased and lose their accents. "
        "Their rows of the token table stay untrained, and some words become [UNK]. Use the uncased vocabulary of the "
        "same model, or make one with train_wordpiece",
        where,
        f"{folded:,}",
        counted(len(pieces), "piece"),
    )


@functools.cache
def bert_pieces() -> tuple[str, ...]:
    """Uncased vocabulary of BERT, which the package contains: 30,522 pieces."""
    text = resources.files("clipa_eqx").joinpath("assets/bert_uncased_vocab.txt").read_text(encoding="utf-8")
    return tuple(text.removesuffix("\n").split("\n"))


@functools.cache
def bert_classes() -> bytes:
    """Class (1-4) of each piece of BERT's vocabulary."""
    digits = resources.files("clipa_eqx").joinpath("assets/bert_uncased_pos_classes.txt").read_bytes()
    # The file has one digit more, for the empty entry after the last line.
    return bytes(digit - ord("0") for digit in digits[: len(bert_pieces())])


def look_up_classes(pieces: Sequence[str]) -> tuple[bytes, int]:
    """Look up the class of each piece by its text in BERT's vocabulary; unknown pieces get class 4.

    Returns:
        One class per piece, and the number of unknown pieces.
    """
    known = dict(zip(bert_pieces(), bert_classes(), strict=True))
    return bytes(known.get(piece, OTHER_CLASS) for piece in pieces), sum(piece not in known for piece in pieces)
