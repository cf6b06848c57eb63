"""Filters of rows before their images are looked at: first ``--subset``, then each ``--where`` in order."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np

from clipa_eqx.data.records import ExtraValue
from clipa_eqx.errors import DataError
from conversion.records.condition_values import check_conditions, evaluate, shown_values
from conversion.records.conditions import Kind, parse_conditions
from conversion.records.ids import EXPECTED, Form, id_of, shows_form, unpack_ids
from conversion.records.options import IngestOptions, has_filters, key_prefix
from conversion.records.places import Place
from conversion.records.rows import (
    NO_ID,
    NO_VALUE,
    NOT_IN_SUBSET,
    NOT_SELECTED,
    Columns,
    Lost,
    Part,
    Plan,
    Row,
    Tally,
    printable,
    shortened,
)
from conversion.records.sorted_ids import Positions, SortedIds
from conversion.records.sources.damage import Scattered
from conversion.records.sources.kinds import read_part, source_of
from conversion.records.sources.planning import FIRST_ROWS

_ROWS_AT_ONCE, _BYTES_AT_ONCE = 64, 2**24
_LONGEST = 80  # characters of an id that is shown
_NOTHING: Mapping[str, ExtraValue] = {}

Item = Row | Lost


@dataclass(frozen=True, kw_only=True)
class Filters:
    """The facts about the filters of a conversion that its options do not have.

    Attributes:
        form: form of the ids of the subset; None without one.
        kinds: for each condition, the kinds of the columns that are only compared with each other.
    """

    form: Form | None = None
    kinds: tuple[Mapping[str, Kind], ...] = ()


class Judged(NamedTuple):
    """A row, and why a filter leaves it out; None if none does."""

    item: Item
    why: Lost | None


class RowFilter:
    """The filters of one part. It notes the positions of the ids that it met.

    Args:
        columns: the columns of the part.
        ids: the ids of the subset; None without one.
        key_prefix: put before every key.
    """

    def __init__(
        self,
        options: IngestOptions,
        filters: Filters,
        columns: Columns,
        *,
        ids: SortedIds | None,
        key_prefix: str = "",
    ) -> None:
        self._conditions = parse_conditions(options.where)
        self._filters = filters
        self._column = columns.subset
        self._ids = ids
        self._prefix = key_prefix
        self._met: list[Positions] = []

    def judged(self, items: Iterable[Item], *, limit: int | None) -> Iterator[Judged]:
        """Yield the rows in order, up to ``limit``. A few are read ahead."""
        for batch in _batches(items, limit):
            why: list[Lost | None] = [None] * len(batch)
            if self._ids is not None and self._filters.form is not None:
                self._look_up(batch, why, self._ids, self._filters.form)
            self._select(batch, why)
            yield from map(Judged, batch, why)

    def met(self) -> Positions:
        """The positions, in order, of the ids of the subset that rows have."""
        return np.unique(np.concatenate(self._met)) if self._met else np.empty(0, np.int64)

    def _look_up(self, batch: Sequence[Item], why: list[Lost | None], ids: SortedIds, form: Form) -> None:
        numbers: list[int] = []
        found: list[bytes] = []
        for number, item in enumerate(batch):
            if isinstance(item, Lost) and item.extra is None:
                continue  # it keeps its own reason
            one = id_of(id_value(item, self._column, self._prefix), form)
            if one is not None:
                numbers.append(number)
                found.append(one)
            elif isinstance(item, Row):
                why[number] = self._lost(item, NO_ID, self._shown(item, f", expected {EXPECTED[form]}"))
        positions = ids.find(unpack_ids(found))
        self._met.append(positions[positions >= 0])
        for number, position in zip(numbers, positions.tolist(), strict=True):
            if position < 0:
                why[number] = self._lost(batch[number], NOT_IN_SUBSET, self._shown(batch[number]))

    def _select(self, batch: Sequence[Item], why: list[Lost | None]) -> None:
        for condition, kinds in zip(self._conditions, self._filters.kinds, strict=True):
            rows = [
                (number, item) for number, item in enumerate(batch) if isinstance(item, Row) and why[number] is None
            ]
            outcomes = evaluate(condition, [item.extra for _, item in rows], kinds=kinds)
            for (number, item), outcome in zip(rows, outcomes, strict=True):
                if outcome.is_true:
                    continue
                what = f"{condition.text}: {shown_values(condition, item.extra)}"
                if outcome.wrong:
                    what += f"; {outcome.wrong}"
                why[number] = self._lost(item, NO_VALUE if outcome.is_true is None else NOT_SELECTED, what)

    def _lost(self, item: Item, reason: str, detail: str) -> Lost:
        return Lost(reason=reason, key=self._prefix + printable(_text(item.key)), detail=detail)

    def _shown(self, item: Item, problem: str = "") -> str:
        value = id_value(item, self._column, self._prefix)
        if value is None:
            return f"no {self._column}"
        return f"{self._column or 'key'} {shortened(repr(value), _LONGEST)}{problem}"


def id_value(item: Item, column: str | None, key_prefix: str = "") -> object:
    """The value of a row that is looked up: that of the column, or its key as the record has it."""
    if column is not None:
        return (item.extra or _NOTHING).get(column)
    return key_prefix.encode() + item.key if isinstance(item.key, bytes) else key_prefix + item.key


def without_used(row: Row, options: IngestOptions) -> Row:
    """The row with only those values that are to be kept."""
    if len(row.extra) <= len(options.keep) and all(name in options.keep for name in row.extra):
        return row
    return replace(row, extra={name: value for name, value in row.extra.items() if name in options.keep})


def check_kind_of_filters(kind: str, options: IngestOptions) -> None:
    """Check that a kind of source has columns, if there are filters.

    Raises:
        DataError: it has none.
    """
    if has_filters(options) and not source_of(kind).has_columns:
        raise DataError(f"source {kind} has no columns, so --subset and --where do not apply to it")


def check_first_rows(place: Place, plan: Plan, *, kind: str, options: IngestOptions, form: Form | None) -> Filters:
    """Check that the first rows have values that the filters can use, before anything is written.

    Args:
        form: form of the ids of the subset; None without one.

    Raises:
        DataError: no id of these rows is of the form of the subset's, or a column holds values of another kind than an
            expression needs.
    """
    items = list(islice(_first_rows(place, plan.parts, kind, options), FIRST_ROWS))
    where = f"the first rows of {place.url}"
    if form is not None:
        _check_ids(items, form, options, where=where)
    rows = [item.extra for item, _ in items]
    return Filters(form=form, kinds=check_conditions(parse_conditions(options.where), rows, where=where))


def _check_ids(items: Sequence[tuple[Row, Part]], form: Form, options: IngestOptions, *, where: str) -> None:
    values: list[tuple[object, str | None]] = []
    for row, part in items:
        column = part.columns.subset
        value = id_value(row, column, key_prefix(part.source, options))
        values += [] if value is None else [(value, column)]
    if not values or any(shows_form(value, form) for value, _ in values):
        return
    value, column = values[0]
    prefixed = " (--prefix-keys)" if options.prefix_keys else ""
    ids = f"the keys{prefixed} are" if column is None else f"column {column!r} holds"
    raise DataError(
        f"--subset: {ids} values such as {shortened(repr(value), _LONGEST)} in {where}, and the file holds "
        f"{EXPECTED[form]}; name the column with such ids with --subset-column"
    )


def _first_rows(place: Place, parts: Iterable[Part], kind: str, options: IngestOptions) -> Iterator[tuple[Row, Part]]:
    """Yield the first rows without images, each with its part."""
    for part in parts:
        columns = replace(part.columns, image=None, caption=None)
        only = replace(part, columns=columns, labels_only=True)
        try:
            items = list(islice(read_part(place, only, kind=kind, options=options, tally=Tally()), FIRST_ROWS))
        except Scattered:
            joined = replace(only, is_joined=True)
            items = list(islice(read_part(place, joined, kind=kind, options=options, tally=Tally()), FIRST_ROWS))
        yield from ((item, part) for item in items if isinstance(item, Row))


def _batches(items: Iterable[Item], limit: int | None) -> Iterator[list[Item]]:
    """Yield the rows in batches that bound memory."""
    batch: list[Item] = []
    rows = size = 0
    for item in items:
        batch.append(item)
        rows += item.count if isinstance(item, Lost) else 1
        size += len(item.image) if isinstance(item, Row) and isinstance(item.image, bytes) else 0
        is_last = limit is not None and rows >= limit
        if is_last or len(batch) == _ROWS_AT_ONCE or size >= _BYTES_AT_ONCE:
            yield batch
            batch, size = [], 0
        if is_last:
            return
    if batch:
        yield batch


def _text(key: str | bytes) -> str:
    return key if isinstance(key, str) else key.decode(errors="backslashreplace")
