"""Rows of serialized ``tf.Example``s, from whatever file holds them."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.rows import BAD_ROW, Columns, Lost, Part, Row
from conversion.records.sources.columns import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    KEY_COLUMNS,
    check_values,
    choose_captions,
    choose_column,
    choose_subset,
    values_to_read,
)
from conversion.records.sources.example_proto import Features, parse_example
from conversion.records.sources.value_types import check_types
from conversion.records.sources.values import as_key, as_labels, captions_of, kept_values

# A reader of a file: each serialized example in order, and lost rows for those that cannot be read. It raises
# ``Damaged`` if the rest cannot be read, and ``DataError`` if the file cannot be opened.
ReadFile = Callable[[Place, str], Iterator[bytes | Lost]]


def read_features(examples: Iterable[bytes | Lost]) -> Iterator[Features]:
    """The features of each valid example."""
    parsed = (parse_example(example) for example in examples if isinstance(example, bytes))
    return (features for features in parsed if not isinstance(features, str))


def choose_features(
    examples: Iterable[Features],
    *,
    options: IngestOptions,
    where: str,
    image: tuple[str, ...] = IMAGE_COLUMNS,
    caption: tuple[str, ...] = CAPTION_COLUMNS,
    label: tuple[str, ...] = (),
    key: tuple[str, ...] = KEY_COLUMNS,
) -> Columns:
    """Choose the features that rows are made of. Captions are optional if there is a label.

    Args:
        image: usual names of the image, those of the other features likewise.

    Raises:
        DataError: a feature is missing, or holds values of the wrong type.
    """
    first = list(examples)
    names = names_of(first)
    if not names:
        return Columns()
    check_values(names, options=options, where=where)
    subset = choose_subset(names, options=options, where=where)
    found = choose_column(options.label_column, names, label, what="label", where=where)
    needed = found is None
    columns = Columns(
        image=choose_column(options.image_column, names, image, what="image", where=where, needed=True),
        caption=choose_captions(options.caption_column, names, caption, where=where, needed=needed),
        label=found,
        key=choose_column(options.key_column, names, key, what="key", where=where),
        subset=subset,
        values=values_to_read(options, subset),
    )
    singles = ({name: _value(features, name) for name in features} for features in first)
    check_types(singles, replace(columns, caption=None), where=where)
    check_types(first, Columns(caption=columns.caption), where=where)  # a row may have several captions
    return columns


def names_of(examples: Iterable[Features]) -> Collection[str]:
    """Names of all features, in order."""
    return dict.fromkeys(name for features in examples for name in sorted(features))


def read_examples(examples: Iterable[bytes | Lost], part: Part) -> Iterator[Row | Lost]:
    """The rows of a file in order. An example without a key is named by its place."""
    number = 0
    for example in examples:
        place_key = f"{part.source}/{number:08d}"
        if isinstance(example, Lost):
            yield replace(example, key=place_key)
            number += example.count
            continue
        features = parse_example(example)
        number += 1
        if isinstance(features, str):
            yield Lost(reason=BAD_ROW, key=place_key, detail=features)
        else:
            yield _row(features, part.columns, place_key=place_key)


def _row(features: Features, columns: Columns, *, place_key: str) -> Row:
    key = as_key(_value(features, columns.key))
    kept = {name: _value(features, name) for name in columns.values if name in features}
    return Row(
        key=place_key if key is None else key,
        image=_image(features, columns.image),
        captions=captions_of(features, columns.captions),
        labels=as_labels(features.get(columns.label or "")),
        extra=kept_values(kept, columns.values),
    )


def _image(features: Features, name: str | None) -> bytes | str | None:
    images = features.get(name or "", ())
    if len(images) > 1:
        return f"{len(images):,} values in {name!r}, expected one image"
    return image if images and isinstance(image := images[0], bytes) else None


def _value(features: Features, name: str | None) -> object:
    """The value of a feature; a list if it has several."""
    values = features.get(name) if name is not None else None
    return values[0] if values and len(values) == 1 else values or None
