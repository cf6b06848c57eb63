"""Damaged files: one lost row accounts for the rows that a file does not give. Files that must be read otherwise."""

from collections.abc import Iterable, Iterator

from conversion.records.rows import TRUNCATED, Lost, Part, Row


class Damaged(Exception):
    """The rest of a file cannot be read.

    Attributes:
        key: the row in which it breaks, if that is known.
        expected: number of rows that the file should hold, if it says so itself.
    """

    def __init__(self, detail: str, *, key: str = "", expected: int | None = None) -> None:
        super().__init__(detail)
        self.key = key
        self.expected = expected


class Scattered(Exception):
    """The rows of a file are not complete pieces of it: it has to be read again from its start, with rows joined."""


def with_lost_rest(rows: Iterable[Row | Lost], part: Part, *, expected: int | None = None) -> Iterator[Row | Lost]:
    """Yield the rows of a part, then a lost row for those that are missing.

    Rows are missing if ``rows`` raises ``Damaged``, or gives fewer than ``expected``.

    Args:
        rows: rows of the file, also lost ones.
        expected: number of rows that statistics next to the file give, None if there are none. Without a number, one
            row is counted, and the number of lost rows is reported as unknown.
    """
    read = 0
    damage: Damaged | None = None
    try:
        for row in rows:
            yield row
            read += row.count if isinstance(row, Lost) else 1
    except Damaged as error:
        damage = error
        expected = expected if error.expected is None else error.expected
    if damage is not None or (expected is not None and expected > read):
        yield Lost(
            reason=TRUNCATED,
            key=(damage and damage.key) or part.source,
            detail=str(damage or f"it holds {read} rows, its statistics say {expected}"),
            count=1 if expected is None else max(expected - read, 1),
            rest_unknown=expected is None,
        )
