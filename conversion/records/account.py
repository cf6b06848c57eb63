"""The account of a conversion, from the reports of its parts in any order."""

import heapq
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from clipa_eqx.data.manifest import Manifest
from conversion.records.keys import Fingerprint
from conversion.records.options import IngestOptions
from conversion.records.part_report import PartReport
from conversion.records.rows import Plan
from conversion.records.unknown_words import PieceCounts, unknown_entry

Value = TypeVar("Value")


class PartReports:
    """Reports by number of their part, with only the first few examples of each reason over all parts."""

    def __init__(self, examples: int) -> None:
        self._limit = examples
        self._reports: dict[int, PartReport] = {}
        self._first_parts = self._first_rows = 0  # parts before the first one without a report, and their rows
        # Reason -> (part, place in the part's report, example).
        self._examples: dict[str, list[tuple[int, int, dict[str, str]]]] = {}

    def add(self, report: PartReport) -> None:
        """Add a report; it replaces an earlier one of the same part."""
        self.remove(report.number)
        self._reports[report.number] = _compact(report)
        for reason, examples in report.examples.items():
            new = [(report.number, i, example) for i, example in enumerate(examples)]
            held = [*self._examples.get(reason, []), *new]
            self._examples[reason] = heapq.nsmallest(self._limit, held, key=lambda one: one[:2])

    def remove(self, number: int) -> None:
        """Forget the report of a part, if there is one."""
        self._reports.pop(number, None)
        if number < self._first_parts:
            self._first_parts = self._first_rows = 0
        for reason, held in self._examples.items():
            self._examples[reason] = [one for one in held if one[0] != number]

    def __len__(self) -> int:
        return len(self._reports)

    def __contains__(self, number: int) -> bool:
        return number in self._reports

    def __getitem__(self, number: int) -> PartReport:
        return self._reports[number]

    def in_order(self) -> list[PartReport]:
        """All reports by number of their part."""
        return [self._reports[number] for number in sorted(self._reports)]

    def examples(self) -> dict[str, list[dict[str, str]]]:
        """The first examples of each reason in the order of the source."""
        return {reason: [one[2] for one in held] for reason, held in sorted(self._examples.items()) if held}

    def label_range(self) -> tuple[int | None, int | None]:
        """The lowest and the highest class number of any row; None without labels."""
        lowest = [one.lowest_label for one in self._reports.values() if one.lowest_label is not None]
        highest = [one.highest_label for one in self._reports.values() if one.highest_label is not None]
        return min(lowest, default=None), max(highest, default=None)

    def first_rows(self) -> int:
        """Number of rows read in the first parts, up to the first part without a report."""
        while (report := self._reports.get(self._first_parts)) is not None:
            self._first_parts += 1
            self._first_rows += report.rows_read
        return self._first_rows


def _compact(report: PartReport) -> PartReport:
    """The report without examples, with one copy of what is equal in most of hundreds of thousands of reports."""
    return replace(
        report,
        examples={},
        dropped=_with_shared_names(report.dropped),
        captions_dropped=_with_shared_names(report.captions_dropped),
        shown=[_with_shared_names(one) for one in report.shown],
        shards=[_with_shared_names(one) for one in report.shards],
        versions={sys.intern(name): sys.intern(version) for name, version in report.versions.items()},
    )


def _with_shared_names(values: Mapping[str, Value]) -> dict[str, Value]:
    return {sys.intern(name): value for name, value in values.items()}


def close_account(reports: PartReports, plan: Plan, command: Mapping[str, object], options: IngestOptions) -> Manifest:
    """The manifest of all parts. It does not depend on the time, the destination or the number of workers."""
    dropped: Counter[str] = Counter()
    captions_dropped: Counter[str] = Counter()
    keys, content = Fingerprint(), Fingerprint()
    names = options.class_names or plan.class_names
    ordered = reports.in_order()
    ignored = sum(report.ignored_members for report in ordered)
    scattered = sum(report.scattered_tars for report in ordered)
    of_lines = sum(report.captions_of_lines for report in ordered)
    most_labels = max((report.most_labels for report in ordered), default=0)
    for report in ordered:
        dropped.update(report.dropped)
        captions_dropped.update(report.captions_dropped)
        keys.add(bytes.fromhex(report.keys))
        content.add(bytes.fromhex(report.content))
    return Manifest(
        shards=tuple(shard for report in ordered for shard in report.shard_infos()),
        rows_read=sum(report.rows_read for report in ordered),
        rows_written=sum(report.rows_written for report in ordered),
        rows_dropped=dict(sorted(dropped.items())),
        class_names=names,
        info={
            "command": command,
            "examples": reports.examples(),
            "captions_written": sum(report.captions_written for report in ordered),
            "captions_dropped": dict(sorted(captions_dropped.items())),
            **({"captions_of_lines": of_lines} if of_lines else {}),
            **_shown(ordered),
            **unknown_entry(_pieces(ordered), names or ()),
            "damaged_sources": [damage for report in ordered for damage in report.damaged],
            "key_fingerprint": keys.hex(),
            "content_fingerprint": content.hex(),
            "versions": _versions(ordered),
            **({"ignored_members": ignored} if ignored else {}),
            **({"scattered_tars": scattered} if scattered else {}),
            **_downloads(ordered),
            **_names_of_source(plan, options),
            **_label_range(reports),
            **({"most_labels": most_labels} if most_labels > 1 else {}),
            **plan.info,
        },
    )


def _shown(reports: Sequence[PartReport]) -> dict[str, object]:
    """For a check at a glance: fewest and most captions of a record, and three records from all over the source."""
    full = [report for report in reports if report.shown]
    if not full:
        return {}
    spread = [full[0].shown[0], full[len(full) // 2].shown[len(full[len(full) // 2].shown) // 2], full[-1].shown[-1]]
    shown = [one for i, one in enumerate(spread) if one not in spread[:i]]
    fewest = min(report.fewest_captions or 0 for report in full)
    most = max(report.most_captions for report in full)
    return {"captions_per_record": {"fewest": fewest, "most": most}, "records": shown}


def _pieces(reports: Sequence[PartReport]) -> PieceCounts:
    """The counts of the sampled captions of all parts."""
    return PieceCounts(
        texts=sum(report.sampled_captions for report in reports),
        pieces=sum(report.pieces for report in reports),
        unknown=sum(report.unknown_pieces for report in reports),
    )


def _downloads(reports: Sequence[PartReport]) -> dict[str, object]:
    """The downloads that img2dataset reports next to its shards, which hold only those that succeeded."""
    total = sum(report.downloads for report in reports)
    return {"downloads": {"total": total, "failed": sum(one.failed_downloads for one in reports)}} if total else {}


def _label_range(reports: PartReports) -> dict[str, object]:
    lowest, highest = reports.label_range()
    return {} if lowest is None else {"labels": {"lowest": lowest, "highest": highest}}


def _names_of_source(plan: Plan, options: IngestOptions) -> dict[str, object]:
    """The names that the source has for the classes, if others were given: by them the order can be checked."""
    own = plan.class_names
    return {"source_class_names": list(own)} if own and options.class_names and own != options.class_names else {}


def _versions(reports: Sequence[PartReport]) -> dict[str, str]:
    """All versions of each library that took part: a conversion may be resumed after an update."""
    used: dict[str, dict[str, None]] = {}
    for report in reports:
        for name, version in report.versions.items():
            used.setdefault(name, {})[version] = None
    return {name: ", ".join(versions) for name, versions in used.items()}


def describe_rows(rows: Mapping[str, int]) -> str:
    """Summarize numbers of rows by reason, with the number read under ``read``, in one line."""
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(rows.items()) if reason != "read")
    return f"{rows['read']:,} rows" + (f", dropped: {dropped}" if dropped else "")
