"""Options of a conversion: everything that decides the output, in addition to the source."""

import os
import re
from dataclasses import dataclass
from typing import Literal

from clipa_eqx.errors import DataError
from conversion.records.conditions import parse_conditions


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """Options that decide the content of the output. Their names and values are in the manifest if they are changed.

    Attributes:
        image_column: column with the image, or with its path. Columns are those of tables, the features of
            ``tf.Example``s, or suffixes of members and fields of the JSON member in tars; None looks for the usual
            names. The same holds for the next three.
        caption_column: column with the caption or captions; several columns give the captions of all, in their order.
        key_column: column with the unique name of each row.
        label_column: column with the class number or name; captions are then optional.
        keep: columns whose values go to ``extra``.
        subset: file with the ids of the rows to keep, a local path or an fsspec URL (None: all rows).
        subset_column: column of the source with these ids (None: as the file of the subset decides).
        usual_subset_column: the column that is taken if the source has it and no other is asked for. The conversion
            sets it from the file of the subset.
        where: expressions that must all hold for the values of a row (see ``conditions``).
        caption_lines: each line of a text member of a tar is a caption; otherwise the text is one caption.
        split: the split to read, of a source that holds several.
        labels: JSON list with the labels of ImageNet's validation images, which replace those of the source.
        own_classes: label with the classes of the source instead of those of ImageNet, if it has both.
        images: folder that listed paths are relative to (None: the folder of the list).
        class_names: name of each label.
        first_label: number of the first class in the source; records count from 0.
        prefix_keys: put the name of the source file before each key, for dumps that share keys.
        validate: whether images are decoded or only their headers are read.
        min_side: shortest accepted image side in pixels.
        max_side: longest image side in pixels; larger images are re-encoded.
        jpeg_quality: quality of re-encoded images, 1 to 100.
        limit: number of first rows to read (None: all).
        records_per_shard: maximum number of records in a shard.
        examples: number of examples kept for each reason to drop a row.
    """

    image_column: str | None = None
    caption_column: str | tuple[str, ...] | None = None
    key_column: str | None = None
    label_column: str | None = None
    keep: tuple[str, ...] = ()
    subset: str | None = None
    subset_column: str | None = None
    usual_subset_column: str | None = None
    where: tuple[str, ...] = ()
    caption_lines: bool = False
    split: str | None = None
    labels: str | None = None
    own_classes: bool = False
    images: str | None = None
    class_names: tuple[str, ...] | None = None
    first_label: int = 0
    prefix_keys: bool = False
    validate: Literal["header", "full"] = "full"
    min_side: int = 0
    max_side: int | None = None
    jpeg_quality: int = 95
    limit: int | None = None
    records_per_shard: int = 10_000
    examples: int = 10


def has_filters(options: IngestOptions) -> bool:
    """Check whether rows are left out by ``subset`` or ``where``."""
    return options.subset is not None or bool(options.where)


def key_prefix(source: str, options: IngestOptions) -> str:
    """The text before the keys of the rows of a file: its name, if ``prefix_keys`` is set.

    The name is without its suffix. ``x.tfrecord-00000-of-00002`` is kept whole: the ending identifies the shard.
    """
    if not options.prefix_keys:
        return ""
    return f"{source if re.search(r'-[0-9]+-of-[0-9]+$', source) else os.path.splitext(source)[0]}/"


def check_options(options: IngestOptions) -> None:
    """Check that numbers are in their ranges, and that expressions can be parsed.

    Raises:
        DataError: one is not, or two contradict each other.
    """
    parse_conditions(options.where)
    if options.subset_column is not None and options.subset is None:
        raise DataError("--subset-column names the column with the ids of a subset, so it needs --subset FILE")
    if isinstance(options.caption_column, tuple) and len(set(options.caption_column)) < len(options.caption_column):
        raise DataError(f"--caption-column names a column twice: {', '.join(options.caption_column)}")
    for name, least in (
        ("min_side", 0),
        ("first_label", 0),
        ("max_side", 1),
        ("limit", 1),
        ("records_per_shard", 1),
        ("examples", 0),
    ):
        value: int | None = getattr(options, name)
        if value is not None and value < least:
            raise DataError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if not 1 <= options.jpeg_quality <= 100:
        raise DataError(f"--jpeg-quality must be between 1 and 100, got {options.jpeg_quality}")
    if options.max_side is not None and options.max_side < options.min_side:
        raise DataError(f"--max-side {options.max_side} is smaller than --min-side {options.min_side}")
