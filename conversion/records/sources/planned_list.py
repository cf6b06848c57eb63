"""Plan of one list of images and captions, in any format."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from conversion.records.rows import Columns, Part


class PlannedList(NamedTuple):
    """The plan of one list.

    Attributes:
        parts: the list cut into parts of ``records_per_shard`` images.
        content: what decides its rows, for the hash over the source.
        columns: the chosen columns.
        names: the columns that the list has; none if it is empty.
        unlisted: number of captions of images that the list does not have.
    """

    parts: Sequence[Part] = ()
    content: Iterable[bytes] = ()
    columns: Columns = Columns()
    names: Collection[str] = ()
    unlisted: int = 0
