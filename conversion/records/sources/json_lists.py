"""Lists in JSON: COCO, Karpathy's splits, and plain lists of maps."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

from clipa_eqx.errors import DataError
from conversion.records.listing import FoundFile
from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.reading import unreadable
from conversion.records.rows import Columns, ListedRow, one_label
from conversion.records.sources.absent_images import check_paths
from conversion.records.sources.columns import choose_listed, count_names
from conversion.records.sources.encodings import Encoding
from conversion.records.sources.listed import ListFile, join_rows, list_parts, path_key, spelled
from conversion.records.sources.planned_list import PlannedList
from conversion.records.sources.planning import FIRST_ROWS
from conversion.records.sources.value_types import check_types
from conversion.records.sources.values import as_key, as_labels, captions_of, from_json, is_missing, kept_values

Fields = Mapping[str, object]
Captions = Sequence[str | bytes | None]


class _Content(NamedTuple):
    """The maps of a list.

    Attributes:
        entries: one per image.
        annotations: COCO's captions, each with the id of its image; None: entries have their own captions.
    """

    entries: Sequence[Fields]
    annotations: Sequence[Fields] | None


def plan_json(
    place: Place, file: FoundFile, options: IngestOptions, *, left: set[str], key_folder: str = ""
) -> PlannedList:
    """Cut a list into parts of ``records_per_shard`` images. Entries of one image are joined, wherever they are.

    The images that it names, in any split, are taken out of ``left``.

    Raises:
        DataError: the file cannot be read or understood, has no such split or several and none is chosen, or lacks a
            column.
    """
    content = _read(place, file)
    entries = _of_split(content.entries, file, options)
    annotations = content.annotations
    if not entries:
        return PlannedList(unlisted=len(annotations or ()))
    names = count_names(entries)
    texts = None if annotations is None else count_names(annotations) or {"caption": 0}
    if texts is not None and "category_id" in texts and options.caption_column is None:
        raise DataError(
            f"{file.path} holds COCO's objects, not captions (its annotations have: {', '.join(texts)}); give the list "
            "of captions, such as captions_val2017.json"
        )
    columns = choose_listed(names, texts, options=options, where=file.path)
    check_types(itertools.islice(entries, FIRST_ROWS), replace(columns, caption=None), where=file.path)
    paths = (entry.get(columns.path or "") for entry in itertools.islice(entries, FIRST_ROWS))
    check_paths(paths, columns, place=place, options=options, where=file.path)
    described = entries if annotations is None else annotations
    check_types(itertools.islice(described, FIRST_ROWS), Columns(caption=columns.caption), where=file.path)
    by_image = _captions_by_image(annotations or (), columns)

    def captions_for(entry: Fields) -> Captions:
        if annotations is None:
            return captions_of(entry, columns.captions)
        return by_image.pop(_identity(entry.get("id")), ())

    list_file = ListFile(place, file, options, key_folder)
    for entry in content.entries if left else ():
        left.discard(spelled(list_file.complete(_listed_path(entry, columns))))
    rows = join_rows(_row(entry, captions_for(entry), columns, list_file) for entry in entries)
    return PlannedList(
        parts=list_parts(rows, [1] * len(rows), source=file.name, options=options),
        content=(repr(row).encode() for row in rows),
        columns=columns,
        names=names,
        unlisted=0 if options.split else sum(map(len, by_image.values())),
    )


def _read(place: Place, file: FoundFile) -> _Content:
    try:
        data: bytes = place.fs.cat_file(file.path)
        content = from_json(data)
    except OSError as error:
        raise unreadable(file.path, error) from error
    except ValueError as error:
        raise DataError(f"{file.path} is not valid JSON: {error}; is it cut? fetch it again") from error
    if not data.isascii() and json.detect_encoding(data).startswith("utf-8"):
        encoding = Encoding()
        for number, line in enumerate(data.split(b"\n"), 1):
            encoding.note(line, number)
        encoding.check(file.path)
    fields = cast(dict[str, object], content) if isinstance(content, dict) else {}
    if isinstance(fields.get("data"), list) and "images" not in fields:  # as TextCaps has its list
        content = fields["data"]
    return _Content(
        entries=_maps(content if isinstance(content, list) else fields.get("images"), file),
        annotations=_maps(fields["annotations"], file) if "annotations" in fields else None,
    )


def _maps(value: object, file: FoundFile) -> list[dict[str, object]]:
    items = cast(list[object], value) if isinstance(value, list) else [None]
    if not all(isinstance(item, dict) for item in items):
        raise DataError(
            f"{file.path} is not understood; expected COCO's images and annotations, Karpathy's images with sentences, "
            "or a list of maps with a path and captions; if another file is the list, give that file, not its folder"
        )
    return cast(list[dict[str, object]], items)


def _of_split(entries: Sequence[Fields], file: FoundFile, options: IngestOptions) -> Sequence[Fields]:
    splits = sorted({str(entry["split"]) for entry in entries if not is_missing(entry.get("split"))})
    if options.split is None:
        if len(splits) > 1:
            raise DataError(
                f"{file.path} holds several splits, choose with --split A or --split A,B: {', '.join(splits)}"
            )
        return entries
    wanted = options.split.split(",")
    if missing := [name for name in wanted if name not in splits]:
        raise DataError(f"{file.path} has no split {', '.join(missing)}; it has: {', '.join(splits) or 'none'}")
    return [entry for entry in entries if str(entry.get("split")) in wanted]


def _captions_by_image(annotations: Sequence[Fields], columns: Columns) -> dict[object, list[str | bytes | None]]:
    captions: dict[object, list[str | bytes | None]] = {}
    for annotation in annotations:
        found = captions_of(annotation, columns.captions)
        captions.setdefault(_identity(annotation.get("image_id")), []).extend(found)
    return captions


def _identity(value: object) -> object:
    """The key that joins annotations to images: ids may be anything, also lists, and 1 equals 1.0."""
    return value if isinstance(value, int | float | str) else repr(value)


def _row(entry: Fields, captions: Captions, columns: Columns, list_file: ListFile) -> ListedRow:
    path = _listed_path(entry, columns)
    key = as_key(entry.get(columns.key)) if columns.key else None
    return ListedRow(
        key=path_key(path, list_file.key_folder) if key is None else str(key),
        path=list_file.complete(path),
        captions=tuple(captions),
        label=one_label(as_labels(entry.get(columns.label))) if columns.label else None,
        extra=kept_values(entry, columns.values),
    )


def _listed_path(entry: Fields, columns: Columns) -> str:
    path = _path(entry, columns.path or "")
    folder = _path(entry, "filepath") if columns.path == "filename" else ""
    return f"{folder}/{path}" if folder else path


def _path(entry: Fields, name: str) -> str:
    value = entry.get(name)
    return "" if is_missing(value) or not value else str(value)
