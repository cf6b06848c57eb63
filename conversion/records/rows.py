"""What every source gives: parts that are read on their own, rows in a fixed order, and why a row was left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from clipa_eqx.data.records import ExtraValue

Kind = Literal["img2dataset", "webdataset", "parquet", "folder", "tfds", "captions"]

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
TRUNCATED = "truncated shard"
DUPLICATE = "duplicate key"
DUPLICATE_OTHER = "duplicate key of another sample"


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """Everything that decides the content of the output, besides the source itself.

    Columns are those of tables, the features of `tf.Example`s, or the fields of the JSON member in tars; None looks for
    the usual names. `split` chooses one of several that a source holds. `images` is the folder that listed paths are
    relative to (None: where the list lies). Sides are in pixels. `keep` names columns that go to `extra`.
    `prefix_keys` puts the source file's name before each key, for dumps whose keys repeat.
    """

    image_column: str | None = None
    caption_column: str | None = None
    key_column: str | None = None
    label_column: str | None = None
    keep: tuple[str, ...] = ()
    split: str | None = None
    images: str | None = None
    class_names: tuple[str, ...] | None = None
    prefix_keys: bool = False
    validate: Literal["header", "full"] = "full"
    min_side: int = 0
    max_side: int | None = None
    jpeg_quality: int = 95
    limit: int | None = None
    records_per_shard: int = 10_000
    examples: int = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedRow:
    """A row of a list held in memory: the picture is a file, the rest is known."""

    key: str
    path: str
    captions: tuple[str | bytes | None, ...] = ()
    label: int | None = None
    extra: Mapping[str, ExtraValue] = field(default_factory=dict[str, ExtraValue])


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names under which rows hold what a record is made of; None: they do not. Chosen once, before any row is read.

    `image` holds bytes, `path` names a file. In tars `.txt` is a member, `txt` a field of the JSON member, and an
    `image` of None any member with the suffix of a picture.
    """

    image: str | None = None
    path: str | None = None
    caption: str | None = None
    key: str | None = None
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of the source that one worker reads from its first row to its last.

    `source` names it in messages. `path` is a file inside the source's filesystem. `size` is in bytes, or in rows for
    lists of captions, and only for progress. A piece of a list has its `rows`, or `start` (byte) and `lines` (rows) in
    the file at `path`. `columns` are those of its file, except where `rows` have been read already.
    """

    source: str
    path: str
    size: int
    rows: tuple[ListedRow, ...] | None = None
    start: int = 0
    lines: int | None = None
    columns: Columns = Columns()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All parts in order; `info` goes to the manifest.

    `digest` is a hash of what decides rows beside the parts: contents of lists, names and sizes of files beside shards.
    `columns` says which were chosen, by their use (by list, if several differ).
    """

    parts: tuple[Part, ...]
    class_names: tuple[str, ...] | None = None
    info: Mapping[str, object] = field(default_factory=dict[str, object])
    digest: str = ""
    columns: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row as found. Texts may still be bytes: whether they are UTF-8 is checked later.

    An image that is a text says why there is none.
    """

    key: str | bytes
    image: bytes | str | None
    captions: tuple[str | bytes | None, ...] = ()
    label: int | None = None
    extra: Mapping[str, ExtraValue] = field(default_factory=dict[str, ExtraValue])


def printable(text: str) -> str:
    """The text with what is not Unicode escaped, as file names may hold."""
    return text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Rows that the source holds and that cannot be had, or not kept.

    `rest_unknown` says that more may follow which nobody can count, as behind the cut of a truncated file.
    """

    reason: str
    key: str
    detail: str = ""
    count: int = 1
    rest_unknown: bool = False


@dataclass(kw_only=True)
class Tally:
    """What a reader met on its way: files in a tar that belong to no row."""

    ignored_members: int = 0
