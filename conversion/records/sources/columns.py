"""Choice of columns: those that were asked for, else those with usual names."""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from clipa_eqx.errors import DataError
from conversion.records.conditions import condition_columns
from conversion.records.options import IngestOptions
from conversion.records.rows import Columns, shortened
from conversion.records.sources.absent_images import download_advice
from conversion.records.sources.values import is_missing

_MOST_NAMES, _LONGEST_NAME = 50, 80  # names of columns in a message, and their characters
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
IMAGE_COLUMNS = ("jpg", "image", "jpeg", "png", "webp", "image_bytes", "img", "bytes", "image/encoded")
PATH_COLUMNS = ("image_path", "filepath", "file_path", "path", "file_name", "filename", "file", "image_name", "image")
CAPTION_COLUMNS = (
    "txt",
    "caption",
    "text",
    "captions",
    "texts",
    "title",
    "comment",
    "sentences",
    "TEXT",
    "captions/text",
    "caption_str",
)
URL_COLUMNS = ("url", "URL", "image_url", "img_url", "photo_image_url")
KEY_COLUMNS = ("key", "__key__", "id", "uid", "image/filename")


def is_image_name(name: str) -> bool:
    """Check whether a file has the suffix of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def first_of(names: Collection[str], candidates: Iterable[str]) -> str | None:
    """The first candidate among the names."""
    return next((name for name in candidates if name in names), None)


def usual_of(names: Collection[str], candidates: Iterable[str]) -> str | None:
    """The first candidate among the names, else the first whose letters differ only in their case.

    >>> usual_of(["Image", "Caption"], ["txt", "caption"])
    'Caption'
    """
    usual = list(candidates)
    folded = {name.lower(): name for name in reversed(list(names))}
    found = next((name.lower() for name in usual if name.lower() in folded), None)
    return first_of(names, usual) or (folded[found] if found is not None else None)


def choose_column(
    asked: str | None,
    names: Collection[str],
    candidates: Iterable[str],
    *,
    what: str,
    where: str,
    needed: bool = False,
    flag: str | None = None,
) -> str | None:
    """The column asked for, else the first with a usual name (in any case, except for keys), else None.

    Raises:
        DataError: the column asked for is missing, or no column fits and one is ``needed``.
    """
    flag = flag or f"--{what}-column"
    columns = f"it has: {_listed(names)}"
    if asked is not None and asked not in names:
        raise DataError(f"{where}: no column {shortened(asked, _LONGEST_NAME)!r} for the {what} ({flag}); {columns}")
    # Keys are optional: a new choice of theirs would change what older conversions resume.
    find = first_of if what == "key" else usual_of
    found = find(names, candidates) if asked is None else asked
    if found is None and needed:
        hint = ", or give --label-column if the data have labels instead" if what == "caption" else ""
        url = usual_of(names, URL_COLUMNS) if what == "image" else None
        if url is not None:
            advice = download_advice(where, url, usual_of(names, CAPTION_COLUMNS))
            hint = f"; if the images of column {url!r} have not been downloaded, {advice}"
        raise DataError(f"{where}: no column looks like the {what}; name it with {flag}{hint}; {columns}")
    return found


def choose_captions(
    asked: str | tuple[str, ...] | None,
    names: Collection[str],
    candidates: Iterable[str],
    *,
    where: str,
    needed: bool = False,
) -> str | tuple[str, ...] | None:
    """The column with captions as ``choose_column`` finds it, or all that were asked for.

    Raises:
        DataError: a column asked for is missing, or no column fits and one is ``needed``.
    """
    if isinstance(asked, tuple):
        for name in asked:
            choose_column(name, names, (), what="caption", where=where)
        return asked
    return choose_column(asked, names, candidates, what="caption", where=where, needed=needed)


def _listed(names: Collection[str]) -> str:
    shown = [shortened(str(name), _LONGEST_NAME) for name in itertools.islice(names, _MOST_NAMES)]
    more = [f"and {len(names) - len(shown):,} more"] if len(names) > len(shown) else []
    return ", ".join([*shown, *more])


def choose_listed(
    entries: Mapping[str, int], captions: Mapping[str, int] | None = None, *, options: IngestOptions, where: str
) -> Columns:
    """The columns of a list: of those with usual names, the one that is filled in most entries.

    Args:
        entries: for each column the number of entries that fill it.
        captions: the same for COCO's annotations, which hold the captions.

    Raises:
        DataError: the list has no column for images, none for captions although no label is asked for, or none with a
            name that was asked for.
    """
    captions = entries if captions is None else captions
    paths = sorted(PATH_COLUMNS, key=lambda name: -entries.get(name, 0))
    usual = sorted(CAPTION_COLUMNS, key=lambda name: -captions.get(name, 0))
    # Karpathy's lists of COCO give folder and name separately.
    paths = ["filename"] if {"filename", "filepath"} <= entries.keys() else paths
    needed = options.label_column is None
    subset = choose_subset(entries, options=options, where=where)
    return Columns(
        path=choose_column(options.image_column, entries, paths, what="image", where=where, needed=True),
        caption=choose_captions(options.caption_column, captions, usual, where=where, needed=needed),
        label=choose_column(options.label_column, entries, (), what="label", where=where),
        key=choose_column(options.key_column, entries, (), what="key", where=where),
        subset=subset,
        values=values_to_read(options, subset),
    )


def count_names(entries: Iterable[Mapping[str, object]]) -> Counter[str]:
    """All names, each with the number of entries that have a value under it."""
    counts: Counter[str] = Counter()
    for entry in entries:
        counts.update({name: int(not is_missing(value)) for name, value in entry.items()})
    return counts


def choose_subset(names: Collection[str], *, options: IngestOptions, where: str) -> str | None:
    """The column with the ids of a subset: that asked for, else the one called as in the file; None: the keys are ids.

    Raises:
        DataError: the column asked for is missing.
    """
    asked, usual = options.subset_column, options.usual_subset_column
    if asked is not None:
        return choose_column(asked, names, (), what="ids", flag="--subset-column", where=where)
    return usual if usual in names else None


def values_to_read(options: IngestOptions, subset: str | None) -> tuple[str, ...]:
    """The columns whose values rows carry: those to keep, those of ``--where``, and that of the ids of a subset."""
    ids = () if subset is None else (subset,)
    return tuple(dict.fromkeys((*options.keep, *condition_columns(options.where), *ids)))


def check_values(names: Collection[str], *, options: IngestOptions, where: str) -> None:
    """Check that every column to keep exists, and every column of ``--where``.

    Raises:
        DataError: one does not.
    """
    for flag, columns in (("--keep", options.keep), ("--where", condition_columns(options.where))):
        for name in columns:
            what = "extra" if flag == "--keep" else "condition"
            choose_column(name, names, (), what=what, flag=flag, where=where)
