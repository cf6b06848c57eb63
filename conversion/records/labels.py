"""Labels of rows: class numbers, or texts that name classes; numbers that the source counts from 1."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

from clipa_eqx.errors import DataError
from conversion.records.options import IngestOptions
from conversion.records.places import Place, open_place
from conversion.records.rows import Columns, ListedRow, Part, Plan, Row, Tally, shortened
from conversion.records.sources.damage import Scattered
from conversion.records.sources.kinds import read_part
from conversion.records.workers import Progress, Workers, run_jobs

_FIRST_ROWS = 256  # rows that decide whether labels are numbers or texts
_MOST_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes of a conversion.

    Attributes:
        count: number of class names; None if there are none.
        numbers: number by name, if labels are texts; empty if they are numbers.
        first: the number of the first class in the source.
    """

    count: int | None = None
    numbers: Mapping[str, int] = field(default_factory=dict[str, int])
    first: int = 0

    def number(self, label: int | str) -> int | None:
        """The number of a class, counted from 0; None for a text that names no class. It may be out of range."""
        if self.numbers:
            return self.numbers.get(str(label))
        return label - self.first if isinstance(label, int) else None

    def has(self, number: int | None) -> bool:
        """Check whether there is a class of this number."""
        return number is not None and number >= 0 and (self.count is None or number < self.count)


def classes_of(plan: Plan, options: IngestOptions) -> Classes:
    """The classes of a planned conversion.

    Raises:
        DataError: labels are texts, and two classes have the same name; or ``--first-label`` or ``--class-names`` does
            not apply to the source.
    """
    _check_flags(plan, options)
    names = options.class_names or plan.class_names
    numbers = {name: number for number, name in enumerate(names or ())} if plan.has_text_labels else {}
    if names is not None and numbers and len(numbers) < len(names):
        twice = next(name for number, name in enumerate(names) if numbers[name] != number)
        raise DataError(
            f"the labels are texts, and two classes are named {shortened(twice, 100)!r}; give each class a name of its "
            "own with --class-names"
        )
    return Classes(count=None if names is None else len(names), numbers=numbers, first=options.first_label)


def _check_flags(plan: Plan, options: IngestOptions) -> None:
    has_labels = options.label_column is not None or any(part.columns.label for part in plan.parts)
    if options.first_label and (plan.class_names is not None or plan.has_text_labels):
        why = "labels are texts" if plan.has_text_labels else "the source has the names of its classes, from 0 on"
        raise DataError(f"--first-label does not apply: {why}; leave it out")
    if options.first_label and not has_labels:
        raise DataError("--first-label does not apply: the source has no labels; name them with --label-column")


def with_text_labels(place: Place, plan: Plan, *, kind: str, options: IngestOptions, workers: Workers) -> Plan:
    """The plan, with class names if labels are texts: if at least half of those in the first rows are, or if the
    numbers among them are class names too. One text among numbers does not give all numbers another meaning.

    Without given names, all labels of the source are read, and the names are the different ones in sorted order.

    Raises:
        DataError: a part cannot be read, or there are more than 100,000 different labels.
    """
    rows = islice(_labels(place, plan.parts, kind, options), _FIRST_ROWS)
    first = [label for labels in rows for label in labels]
    texts = [label for label in first if isinstance(label, str)]
    names = options.class_names or plan.class_names or ()
    are_numbers = 2 * len(texts) < len(first) and not {str(label) for label in first} - set(texts) <= set(names)
    if not texts or are_numbers:
        return plan
    if options.class_names is None and plan.class_names is None:
        plan = replace(plan, class_names=tuple(sorted(_collect(place, plan, kind, options, workers))))
    return replace(plan, has_text_labels=True)


def check_first_label(lowest: int | None, highest: int | None, classes: Classes) -> None:
    """Refuse labels that count from 1, of which the last has no class name and the others have a wrong one.

    Raises:
        DataError: label 0 never occurs, and the first label without a class name does.
    """
    if lowest is None or highest is None or lowest < 1 or highest != classes.count or classes.numbers:
        return
    first = 1 + classes.first
    raise DataError(
        f"the labels are {lowest + classes.first:,} to {highest + classes.first:,}, and there are {classes.count:,} "
        f"class names, so the source counts from {first}; repeat with --first-label {first} --overwrite"
    )


class _LabelJob(NamedTuple):
    source: str
    part: Part
    kind: str
    options: IngestOptions


def _collect(place: Place, plan: Plan, kind: str, options: IngestOptions, workers: Workers) -> set[str]:
    jobs = [_LabelJob(place.url, part, kind, options) for part in plan.parts]
    progress = Progress(total=len(jobs), unit="part", what="read labels")
    found: set[str] = set()
    try:
        workers = min(workers, len(jobs)) if isinstance(workers, int) else workers
        results = run_jobs(_labels_of_part, jobs, workers=workers, progress=progress, name=lambda job: job.part.source)
        with closing(results):
            for _, labels in results:
                progress.finish(1)
                found |= labels
                if len(found) > _MOST_CLASSES:
                    raise DataError(
                        f"{place.url} has more than {_MOST_CLASSES:,} different texts as labels; are they captions? "
                        "Then name their column with --caption-column"
                    )
    finally:
        progress.close()
    return found


def _labels_of_part(job: _LabelJob, seen: Callable[[int], None]) -> set[str]:
    del seen  # progress is in parts
    rows = _labels(open_place(job.source), [job.part], job.kind, job.options)
    return {str(label) for labels in rows for label in labels}


def _labels(place: Place, parts: Iterable[Part], kind: str, options: IngestOptions) -> Iterator[tuple[int | str, ...]]:
    """Yield the labels of each row, without reading image files."""
    for part in parts:
        if part.rows is not None and part.columns.label is None:
            yield from (row.labels for row in part.rows if isinstance(row, ListedRow))
        elif part.columns.label is not None:
            only = replace(part, columns=_only_labels(part.columns), labels_only=True)
            try:
                yield from _read_labels(place, only, kind, options)
            except Scattered:  # once more from the start: more labels than rows do no harm
                yield from _read_labels(place, replace(only, is_joined=True), kind, options)


def _read_labels(place: Place, part: Part, kind: str, options: IngestOptions) -> Iterator[tuple[int | str, ...]]:
    rows = read_part(place, part, kind=kind, options=options, tally=Tally())
    return (row.labels for row in rows if isinstance(row, Row))


def _only_labels(columns: Columns) -> Columns:
    # Rows of other splits are none, also for the number of rows of a piece of a list.
    return Columns(label=columns.label, path=columns.path, split=columns.split)
