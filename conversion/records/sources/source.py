"""Description of a kind of source, and the files of one source of that kind."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from clipa_eqx.errors import DataError, pip_install
from conversion.records.listing import FoundFile
from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.rows import Columns, Lost, Part, Plan, Row, Tally


@dataclass(frozen=True, kw_only=True)
class SourceFiles:
    """The files of a source.

    Attributes:
        found: all files, sorted by path.
        own: those that hold rows by their names (``Source.owns``).
    """

    place: Place
    found: Sequence[FoundFile]
    own: Sequence[FoundFile]


class WrongKind(Exception):
    """The source does not hold the files of this kind. ``kinds`` makes the message, with the reason if one is given."""


def is_installed(package: str | None) -> bool:
    """Check whether an optional package can be imported, without the seconds that this would take."""
    return package is None or importlib.util.find_spec(package) is not None


def check_package(kind: str, package: str | None) -> None:
    """Check that the optional package of a kind of source is installed; only processes that read import it.

    Raises:
        DataError: it is not.
    """
    if package is not None and not is_installed(package):
        raise DataError(f"source {kind} is read by {package}, which is not installed: {pip_install(package)}")


def needs_label(options: IngestOptions, columns: Columns) -> bool:
    """Check whether rows need a label: they do if its column is named, or if there are labels and no captions."""
    return options.label_column is not None or (columns.label is not None and columns.caption is None)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A kind of source: how its files are recognized, planned and read, and which flags it takes.

    Attributes:
        help: the line of ``--help``.
        files: name of its files in messages.
        owns: whether a file of this name holds rows.
        plan: plan the parts. May raise ``WrongKind``, and ``DataError`` for files that cannot be understood.
        read: read the rows of a part in order, with rows that cannot be read as lost rows.
        marks: parts of file names that suggest this kind, for the advice after a mistake.
        package: optional package that reads it, by the name that pip and Python know.
        is_labeled: whether rows with these columns need a label and may have no caption.
        may_be_empty: whether a source without files is valid.
        sizes_are_rows: whether the sizes of parts are rows instead of bytes.
        has_columns: whether the flags for columns apply.
        has_prefix: whether ``--prefix-keys`` applies.
        has_texts: whether captions may be text files, and ``--caption-lines`` applies.
        has_images: whether ``--images`` applies.
        has_label_flags: whether ``--labels`` and ``--own-classes`` apply.
        split_help: help of ``--split``; empty if it does not apply.
    """

    help: str
    files: str
    owns: Callable[[str], bool]
    plan: Callable[[SourceFiles, IngestOptions], Plan]
    read: Callable[[Place, Part, IngestOptions, Tally], Iterator[Row | Lost]]
    marks: tuple[str, ...] = ()
    package: str | None = None
    is_labeled: Callable[[IngestOptions, Columns], bool] = needs_label
    may_be_empty: bool = False
    sizes_are_rows: bool = False
    has_columns: bool = True
    has_prefix: bool = False
    has_texts: bool = False
    has_images: bool = False
    has_label_flags: bool = False
    split_help: str = ""
