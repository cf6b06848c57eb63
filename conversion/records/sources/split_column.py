"""Splits of tables whose rows name theirs in a column ``split``, as Karpathy's do for Flickr30k and COCO."""

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from clipa_eqx.errors import DataError, counted
from conversion.records.listing import FoundFile
from conversion.records.options import IngestOptions
from conversion.records.rows import printable, shortened
from conversion.records.sources.damage import Damaged
from conversion.records.sources.source import SourceFiles
from conversion.records.sources.splits import is_word
from conversion.records.sources.tables import open_table

COLUMN = "split"
_MOST_SPLITS = 50  # more values are no splits


def count_splits(files: SourceFiles, options: IngestOptions) -> dict[str, int]:
    """The number of rows of each split that the column names; empty if no value is a usual word such as ``train``.

    All tables are read for it, without other columns, unless the first one lacks the column.

    Raises:
        DataError: a table after the first one lacks the column, so that its rows are of no split.
    """
    counts: Counter[str] = Counter()
    without: list[FoundFile] = []
    is_local = files.place.is_local
    for file in files.own:
        with contextlib.suppress(Damaged), open_table(files.place, file.path, is_read=is_local) as table:
            if table.length == 0:
                continue
            if table.schema.names.count(COLUMN) != 1:
                if not counts:
                    break
                without.append(file)
                continue
            for row in table.rows([COLUMN]):
                if isinstance(value := row[COLUMN], bytes):
                    counts[value.decode(errors="backslashreplace")] += 1
                if len(counts) > _MOST_SPLITS:
                    return {}
    if not _are_splits(counts):
        return {}
    if without and (options.split is not None or len(counts) > 1):
        raise DataError(
            f"{files.place.url}: {counted(len(without), 'table')} without the column {COLUMN!r} that others have, such "
            f"as {printable(without[0].name)}; give a pattern of the tables that have it, or of those that do not"
        )
    return dict(counts)


def choose_column_of_splits(
    values: Iterable[object], names: Collection[str], options: IngestOptions, *, where: str
) -> str | None:
    """The column of a list of lines that holds the split of each, if ``--split`` chooses among them; otherwise None.

    Args:
        values: those of the column, of all lines.
        names: of all columns.

    Raises:
        DataError: there are several splits and none is chosen, or there is no such split.
    """
    if COLUMN not in names:
        if options.split is not None:
            raise DataError(f"{where} has no split {printable(options.split)!r}: it has no column {COLUMN!r}")
        return None
    counts = Counter(value for value in values if isinstance(value, str) and value)
    if options.split is not None or _are_splits(counts):
        check_split(counts, options, url=where)
    return None if options.split is None else COLUMN


def _are_splits(values: Collection[str]) -> bool:
    """Check whether the values of a column are splits: few, with a usual word among them."""
    return len(values) <= _MOST_SPLITS and any(map(is_word, values))


def check_split(splits: Mapping[str, int], options: IngestOptions, *, url: str) -> None:
    """Check that a split is chosen if there are several, and that the chosen ones exist.

    Raises:
        DataError: it is not, or one does not.
    """
    shown = ", ".join(
        f"{shortened(printable(name), 40)} ({counted(count, 'row')})" for name, count in sorted(splits.items())
    )
    if options.split is None:
        if len(splits) > 1:
            raise DataError(
                f"{url} holds several splits in its column {COLUMN!r}, choose with --split A or --split A,B: {shown}"
            )
        return
    if missing := [name for name in options.split.split(",") if name not in splits]:
        raise DataError(f"{url} has no split {printable(missing[0])!r} in its column {COLUMN!r}; it has: {shown}")
