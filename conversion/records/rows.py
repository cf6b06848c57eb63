"""Types that every source gives: a plan of parts, the rows of a part in a fixed order, and rows that were lost."""

import hashlib
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from clipa_eqx.data.records import ExtraValue

LOCAL_COPY = "clipa_eqx-copy-"  # start of the name of a temporary folder that holds a local copy of a file
_LOCAL_COPY = re.compile(rf"[^\s'\"]*{LOCAL_COPY}\w+/")
_LONGEST_KEY, _KEPT_OF_KEY = 300, 200  # characters
_ADDRESS = re.compile(r"(?: object)? at 0x[0-9a-fA-F]+")

# Reasons to drop a row. They are keys of ``rows_dropped`` in every manifest, so they do not change.
MISSING_IMAGE = "missing image"
DOWNLOAD_FAILED = "download failed"
UNDECODABLE = "undecodable image"
TOO_MANY_PIXELS = "too many pixels"
TOO_SMALL = "too small"
MISSING_CAPTION = "missing caption"
EMPTY_CAPTION = "empty caption"
CAPTION_NOT_UTF8 = "caption is not UTF-8"
KEY_NOT_UTF8 = "key is not UTF-8"
MISSING_LABEL = "missing label"
NO_CLASS = "no class name"
NO_CLASS_FOLDER = "outside of a class folder"
BAD_ROW = "row cannot be parsed"
WRONG_CELLS = "wrong number of cells"
TRUNCATED = "truncated shard"
NOT_IN_SUBSET = "not in the subset"
NO_ID = "no id for the subset"
NOT_SELECTED = "not selected by --where"
NO_VALUE = "no value for --where"
DUPLICATE = "duplicate key"
DUPLICATE_OTHER = "duplicate key of another sample"
FILTERED = (NOT_IN_SUBSET, NO_ID, NOT_SELECTED, NO_VALUE)
"""Reasons of rows that a filter left out: they are not checked further."""

Image = bytes | str | None
"""The bytes of an image file, or a text that says why there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedRow:
    """A row of a list held in memory: the image is a file, everything else is known.

    The ``repr`` is hashed into the manifest (``source_files``): renaming the class or a field would make old
    conversions look changed. For the same reason ``label`` is a single label, not a tuple of one.
    """

    key: str
    path: str
    captions: tuple[str | bytes | None, ...] = ()
    label: int | str | tuple[int | str, ...] | None = None
    extra: Mapping[str, ExtraValue] = field(default_factory=dict[str, ExtraValue])

    @property
    def labels(self) -> tuple[int | str, ...]:
        """All labels."""
        return () if self.label is None else self.label if isinstance(self.label, tuple) else (self.label,)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names under which rows hold the parts of a record; None: they do not. Chosen once, before any row is read.

    In tars ``.txt`` is a member and ``txt`` a field of the JSON member. An ``image`` of None is there any member with
    the suffix of an image.

    Attributes:
        image: column with the bytes of an image.
        path: column with the path of an image file.
        caption: column with captions; a tuple for several, whose captions follow one another.
        key: column with the unique name of a row.
        label: column with the class number, or with a text that names the class.
        split: column with the split of a row, if rows of other splits are to be left out.
        subset: column with the id that ``--subset`` looks up; None: the key is that id.
        values: all columns whose values a row carries in ``extra``: those to keep, and those that filters use.
    """

    image: str | None = None
    path: str | None = None
    caption: str | tuple[str, ...] | None = None
    key: str | None = None
    label: str | None = None
    split: str | None = None
    subset: str | None = None
    values: tuple[str, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        """The columns with captions; none if there are none."""
        return () if self.caption is None else (self.caption,) if isinstance(self.caption, str) else self.caption


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of the source that one worker reads from its first row to its last.

    Attributes:
        source: name of the piece in messages.
        path: a file inside the source's filesystem.
        size: bytes, or rows for lists; used only for progress.
        rows: the rows themselves, for a piece of a list held in memory.
        start: for a piece of a table of text, the byte in the file at which it begins.
        lines: for a piece of a table of text, its number of rows.
        line: for a piece of a table of text, the number of its first line in the file, from 1.
        border: pixels to remove from each side of every image.
        labels_only: only labels are wanted: no image file is read.
        is_joined: join what belongs to one row wherever it is in the file (see ``Scattered``).
        has_caption_lines: each line of a text file is a caption.
        key_folder: put before paths that are keys, see ``listed.path_key``.
        columns: columns of the file, unless ``rows`` have been read already.
    """

    source: str
    path: str
    size: int
    rows: "tuple[ListedRow | Lost, ...] | None" = None
    start: int = 0
    lines: int | None = None
    line: int = 1
    key_folder: str = ""
    columns: Columns = Columns()
    border: int = 0
    labels_only: bool = False
    is_joined: bool = False
    has_caption_lines: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All parts of a source in order.

    Attributes:
        class_names: name of each label, if the source has them.
        info: entries for the manifest.
        digest: hash of what decides rows in addition to the parts: contents of lists, names and sizes of files next to
            shards.
        columns: chosen column by use, or a map of these by list if the lists differ.
        has_text_labels: whether labels are names of classes instead of numbers.
    """

    parts: tuple[Part, ...]
    class_names: tuple[str, ...] | None = None
    info: Mapping[str, object] = field(default_factory=dict[str, object])
    digest: str = ""
    columns: Mapping[str, object] = field(default_factory=dict[str, object])
    has_text_labels: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row as found. Texts may still be bytes: UTF-8 is checked later.

    Attributes:
        image: the bytes of an image file; a text says why there is none. A function reads an image of its own file, so
            that a row that a filter leaves out costs no reading.
        labels: class numbers as the source counts, or texts that name classes; usually one.
        extra: values of columns (see ``Columns.values``).
    """

    key: str | bytes
    image: Image | Callable[[], Image]
    captions: tuple[str | bytes | None, ...] = ()
    labels: tuple[int | str, ...] = ()
    extra: Mapping[str, ExtraValue] = field(default_factory=dict[str, ExtraValue])


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Rows of the source that cannot be read, or are not kept.

    Attributes:
        reason: one of the constants above.
        key: key of the (first) row, or a description of its place.
        count: number of rows.
        rest_unknown: more rows may follow that cannot be counted, as after the cut of a truncated file.
        extra: values of columns, as of a ``Row``, of a single row whose key and values are known; otherwise None.
    """

    reason: str
    key: str
    detail: str = ""
    count: int = 1
    rest_unknown: bool = False
    extra: Mapping[str, ExtraValue] | None = None


@dataclass(kw_only=True)
class Tally:
    """Counts that a reader makes in addition to rows.

    Attributes:
        ignored_members: members of a tar that belong to no row.
        scattered_tars: tars that were joined.
        downloads: downloads that img2dataset reports for a file that holds only those that succeeded.
        failed_downloads: those that failed.
    """

    ignored_members: int = 0
    scattered_tars: int = 0
    downloads: int = 0
    failed_downloads: int = 0


def one_label(labels: tuple[int | str, ...]) -> int | str | tuple[int | str, ...] | None:
    """Labels as a ``ListedRow`` has them."""
    return labels if len(labels) > 1 else labels[0] if labels else None


def stable(text: str) -> str:
    """The text without what differs between two equal conversions: addresses of objects, folders of local copies."""
    text = text.replace(f"{tempfile.gettempdir()}/{LOCAL_COPY}", LOCAL_COPY)  # its path may hold spaces
    return _LOCAL_COPY.sub("", _ADDRESS.sub("", text))


def short_key(key: str) -> str:
    """The key if it has at most 300 characters, else its first 200 and a hash of it, so that it stays unique."""
    if len(key) <= _LONGEST_KEY:
        return key
    return f"{key[:_KEPT_OF_KEY]}...{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:32]}"


def shortened(text: str, most: int) -> str:
    """The text if it has at most ``most`` characters, else its beginning."""
    return text if len(text) <= most else f"{text[:most]}..."


def printable(text: str) -> str:
    """The text with everything that is not Unicode escaped; file names may hold such bytes."""
    return text.encode(errors="backslashreplace").decode()
