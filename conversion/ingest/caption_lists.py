"""JSON lists of pictures and captions: COCO, Karpathy's splits, and plain lists of maps."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from clipa_eqx.errors import DataError
from conversion.ingest.class_folders import list_parts
from conversion.ingest.columns import (
    CAPTION_COLUMNS,
    IMAGE_SUFFIXES,
    PATH_COLUMNS,
    as_captions,
    as_extra,
    as_label,
    check_listed,
    first_of,
    from_json,
)
from conversion.ingest.files import Found, Place, check_readable, find_files, open_place, unreadable
from conversion.ingest.pictures import is_complete
from conversion.ingest.plans import digest_of, ignored_files, wrong_kind
from conversion.ingest.rows import IngestOptions, ListedRow, Part, Plan
from conversion.ingest.tables import TABLE_SUFFIXES, table_parts


def plan_captions(place: Place, *, options: IngestOptions) -> Plan:
    """Parts of `records_per_shard` pictures of each list (`.json`, `.csv`, `.tsv`, `.jsonl`).

    Raises:
        DataError: there is no list, or one that is not understood, or several splits and none chosen.
    """
    found = find_files(place)
    lists = [file for file in found if file.name.lower().endswith((".json", *TABLE_SUFFIXES))]
    if not lists:
        raise wrong_kind(place, found, kind="captions", what="lists (.json, .csv, .tsv, .jsonl)")
    check_readable(place, lists)
    parts: list[Part] = []
    pictures = [file for file in found if file.name.lower().endswith(IMAGE_SUFFIXES)]
    digest = hashlib.sha256(digest_of(pictures).encode())
    unlisted = 0
    for file in lists:
        if file.name.lower().endswith(".json"):
            rows, more = _json_rows(place, file, options)
            parts += list_parts(rows, [1] * len(rows), source=file.name, options=options)
            unlisted += more
            for row in rows:
                digest.update(repr(row).encode())
        else:
            pieces, content = table_parts(place, file, options=options)
            parts += pieces
            digest.update(content.encode())
    info = ignored_files(set(found) - set(lists) - set(pictures))
    if unlisted:
        info["captions_of_unlisted_pictures"] = unlisted
    return Plan(parts=tuple(parts), info=info, digest=digest.hexdigest())


def _json_rows(place: Place, file: Found, options: IngestOptions) -> tuple[list[ListedRow], int]:
    """The rows of a list, and how many captions name a picture that it does not list."""
    try:
        content = from_json(place.fs.cat_file(file.path))
    except OSError as error:
        raise unreadable(file.path, error) from error
    except ValueError as error:
        raise DataError(f"{file.path} is not valid JSON: {error}; is it cut? fetch it again") from error
    fields = cast(dict[str, object], content) if isinstance(content, dict) else {}
    entries = _maps(content if isinstance(content, list) else fields.get("images"), file)
    captions: dict[str, list[str | bytes | None]] = {}
    if "annotations" in fields:
        for note in _maps(fields["annotations"], file):
            captions.setdefault(_identity(note.get("image_id")), []).extend(as_captions(note.get("caption")))
    entries = _of_split(entries, file, options)
    if not entries:
        return [], sum(map(len, captions.values()))
    names = dict.fromkeys(name for entry in entries for name in entry)
    # COCO's captions are those of its annotations.
    if "annotations" in fields:
        check_listed(
            {**names, "annotations": None}, options=replace(options, caption_column="annotations"), where=file.path
        )
    else:
        check_listed(names, options=options, where=file.path)
    # Karpathy's lists of COCO give folder and name apart.
    usual = ("filename",) if {"filename", "filepath"} <= names.keys() else PATH_COLUMNS
    name = options.image_column or first_of(names, usual) or ""
    text = None if "annotations" in fields else options.caption_column or first_of(names, CAPTION_COLUMNS)
    rows: list[ListedRow] = []
    for entry in entries:
        found = captions.pop(_identity(entry.get("id")), ()) if text is None else as_captions(entry.get(text))
        path = str(entry.get(name) or "")
        if name == "filename" and entry.get("filepath"):
            path = f"{entry['filepath']}/{path}"
        key = entry.get(options.key_column) if options.key_column else None
        rows.append(
            ListedRow(
                key=path if key is None else str(key),
                path=_complete(path, place, file, options),
                captions=tuple(found),
                label=as_label(entry.get(options.label_column)) if options.label_column else None,
                extra={name: as_extra(entry[name]) for name in options.keep if name in entry},
            )
        )
    return rows, 0 if options.split else sum(map(len, captions.values()))


def _complete(path: str, place: Place, file: Found, options: IngestOptions) -> str:
    if is_complete(path):
        return path
    if options.images is None:
        return f"{file.path.rpartition('/')[0]}/{path}"
    images = open_place(options.images)
    return str(images.fs.unstrip_protocol(images.child(path)))


def _of_split(
    entries: Sequence[Mapping[str, object]], file: Found, options: IngestOptions
) -> list[Mapping[str, object]]:
    splits = sorted({str(entry["split"]) for entry in entries if "split" in entry})
    if options.split is None:
        if len(splits) > 1:
            raise DataError(
                f"{file.path} holds several splits, choose with --split A or --split A,B: {', '.join(splits)}"
            )
        return list(entries)
    wanted = options.split.split(",")
    if missing := [name for name in wanted if name not in splits]:
        raise DataError(f"{file.path} has no split {', '.join(missing)}; it has: {', '.join(splits) or 'none'}")
    return [entry for entry in entries if str(entry.get("split")) in wanted]


def _identity(value: object) -> str:
    """What joins annotations to pictures: ids are whatever somebody wrote, also lists."""
    return repr(value)


def _maps(value: object, file: Found) -> list[dict[str, object]]:
    items = cast(list[object], value) if isinstance(value, list) else [None]
    if not all(isinstance(item, dict) for item in items):
        raise DataError(
            f"{file.path} is not understood; expected COCO's images and annotations, Karpathy's images with sentences, "
            "or a list of maps with a path and captions"
        )
    return cast(list[dict[str, object]], items)
