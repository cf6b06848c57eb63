"""JSON lists of pictures and captions: COCO, Karpathy's splits, and plain lists of maps."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, cast

from clipa_eqx.errors import DataError
from conversion.records.files import Found, Place, check_readable, find_files, open_place, unreadable
from conversion.records.rows import Columns, IngestOptions, ListedRow, Part, Plan, printable
from conversion.records.sources.class_folders import list_parts
from conversion.records.sources.columns import (
    IMAGE_SUFFIXES,
    as_captions,
    as_extra,
    as_label,
    check_kept,
    choose_listed,
    count_names,
    from_json,
)
from conversion.records.sources.images import is_complete
from conversion.records.sources.plans import digest_of, ignored_files, named_columns, wrong_kind
from conversion.records.sources.tables import TABLE_SUFFIXES, table_parts


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
    columns: dict[str, dict[str, object]] = {}
    for file in lists:
        if file.name.lower().endswith(".json"):
            listed = _read_list(place, file, options)
            pieces, chosen, names = listed.parts, listed.columns, listed.names
            unlisted += listed.unlisted
            for row in (row for part in pieces for row in part.rows or ()):
                digest.update(repr(row).encode())
        else:
            pieces, content, chosen, names = table_parts(place, file, options=options)
            digest.update(content.encode())
        parts += pieces
        if names:
            if not columns:
                check_kept(names, options=options, where=file.path)
            columns[printable(file.name)] = named_columns(chosen)
    info = ignored_files(set(found) - set(lists) - set(pictures))
    if unlisted:
        info["captions_of_unlisted_pictures"] = unlisted
    alike = all(one == next(iter(columns.values())) for one in columns.values())
    return Plan(
        parts=tuple(parts),
        info=info,
        digest=digest.hexdigest(),
        columns=next(iter(columns.values()), {}) if alike else columns,
    )


class _List(NamedTuple):
    """A JSON list; `unlisted` counts the captions of pictures that it does not list."""

    parts: Sequence[Part] = ()
    unlisted: int = 0
    columns: Columns = Columns()
    names: Collection[str] = ()


def _read_list(place: Place, file: Found, options: IngestOptions) -> _List:
    try:
        content = from_json(place.fs.cat_file(file.path))
    except OSError as error:
        raise unreadable(file.path, error) from error
    except ValueError as error:
        raise DataError(f"{file.path} is not valid JSON: {error}; is it cut? fetch it again") from error
    fields = cast(dict[str, object], content) if isinstance(content, dict) else {}
    entries = _maps(content if isinstance(content, list) else fields.get("images"), file)
    notes = _maps(fields["annotations"], file) if "annotations" in fields else None
    entries = _of_split(entries, file, options)
    if not entries:
        return _List(unlisted=len(notes or ()))
    names = count_names(entries)
    # COCO's captions are those of its annotations.
    texts = None if notes is None else count_names(notes) or {"caption": 0}
    columns = choose_listed(names, texts, options=options, where=file.path)
    captions: dict[object, list[str | bytes | None]] = {}
    for note in notes or ():
        found = as_captions(note.get(columns.caption or "", ()))
        captions.setdefault(_identity(note.get("image_id")), []).extend(found)
    rows: list[ListedRow] = []
    for entry in entries:
        if notes is None:
            found = as_captions(entry.get(columns.caption or "", ()))
        else:
            found = captions.pop(_identity(entry.get("id")), ())
        path = str(entry.get(columns.path or "") or "")
        if columns.path == "filename" and entry.get("filepath"):
            path = f"{entry['filepath']}/{path}"
        key = entry.get(columns.key) if columns.key else None
        rows.append(
            ListedRow(
                key=path if key is None else str(key),
                path=_complete(path, place, file, options),
                captions=tuple(found),
                label=as_label(entry.get(columns.label)) if columns.label else None,
                extra={name: as_extra(entry[name]) for name in options.keep if name in entry},
            )
        )
    return _List(
        parts=list_parts(rows, [1] * len(rows), source=file.name, options=options),
        unlisted=0 if options.split else sum(map(len, captions.values())),
        columns=columns,
        names=names,
    )


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


def _identity(value: object) -> object:
    """What joins annotations to pictures: ids are whatever somebody wrote, also lists, and 1 is the same as 1.0."""
    return value if isinstance(value, int | float | str) else repr(value)


def _maps(value: object, file: Found) -> list[dict[str, object]]:
    items = cast(list[object], value) if isinstance(value, list) else [None]
    if not all(isinstance(item, dict) for item in items):
        raise DataError(
            f"{file.path} is not understood; expected COCO's images and annotations, Karpathy's images with sentences, "
            "or a list of maps with a path and captions"
        )
    return cast(list[dict[str, object]], items)
