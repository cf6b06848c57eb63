"""A whole source into a folder of records: plan, parts, limit, duplicate keys, and the account of it all."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clipa_eqx.data.manifest import Manifest
from clipa_eqx.errors import DataError
from conversion.records.account import Reports, close_account, describe_rows
from conversion.records.destination import begin, check_name, finish, finished_parts, forget_part, locked
from conversion.records.files import Place, holds, is_pattern, open_place, read_files, root_of
from conversion.records.keys import Buckets, Entries, repeated, unpack_entries
from conversion.records.part import Job, PartReport, convert_part, counts_rows, keys_name
from conversion.records.rows import DUPLICATE, DUPLICATE_OTHER, IngestOptions, Kind, Plan, printable
from conversion.records.sources.kinds import plan_source
from conversion.records.workers import Progress, run_jobs

_log = logging.getLogger(__name__)
_AT_ONCE = 64  # files of keys fetched together


def convert(
    kind: Kind, source: str, target: str, *, options: IngestOptions, workers: int = 1, overwrite: bool = False
) -> Manifest:
    """Convert `source` into the record folder `target` and return its manifest.

    Every row of the source is written or counted under the reason why not. The output does not depend on `workers`. A
    call that was interrupted, in whatever way, is gone on with by the same call; one that was finished is left alone.

    Raises:
        DataError: the source is unfit or cannot be read, or the target holds something else.
    """
    given, place = open_place(source), open_place(target)
    if workers < 1:
        raise DataError(f"--workers must be at least 1, got {workers}")
    _check_options(options)
    check_name(place)
    _check_apart(given, place)
    plan = plan_source(given, kind=kind, options=options)
    if plan.columns:
        _log.info("columns of %s: %s", source, _told(plan.columns))
    command = _command(kind, source, options, plan)
    if not (given.crosses_processes and place.crosses_processes):
        workers = 1
    with locked(place):
        done = begin(place, command, overwrite=overwrite)
        if done is not None:
            _log.info("%s is complete already: nothing to do", target)
            return done
        run = _Run(
            kind=kind,
            source=source,
            place=place,
            options=options,
            plan=plan,
            workers=workers,
            reports=Reports(options.examples),
        )
        for report in finished_parts(place):
            run.reports.add(report)
        run.convert_parts()
        run.apply_limit()
        run.drop_duplicates()
        manifest = close_account(run.reports, plan, command, options)
        finish(place, manifest)
    return manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """What all steps of one conversion need."""

    kind: Kind
    source: str
    place: Place
    options: IngestOptions
    plan: Plan
    workers: int
    reports: Reports

    def convert_parts(self) -> None:
        """Convert all parts, or with a limit as many first ones as it takes."""
        limit, reports = self.options.limit, self.reports
        if reports:
            _log.info("going on: %s of %s parts are done", f"{len(reports):,}", f"{len(self.plan.parts):,}")

        def jobs() -> Iterator[Job]:
            for number in range(len(self.plan.parts)):
                if limit is not None and reports.first_rows() >= limit:
                    return
                if number not in reports:
                    yield self._job(number, limit=limit)

        self._convert(
            jobs(), what=self.kind, before=reports.in_order(), total=limit or sum(part.size for part in self.plan.parts)
        )

    def apply_limit(self) -> None:
        """Keep the first parts whose rows make up the limit; the last is converted again if it has rows too many."""
        if self.options.limit is None:
            return
        left = self.options.limit
        again: list[Job] = []  # at most one
        for report in self.reports.in_order():
            if left == 0:
                forget_part(self.place, report)
                self.reports.remove(report.number)
                continue
            if report.rows_read > left:
                again.append(self._job(report.number, limit=left))
            left -= min(left, report.rows_read)
        self._convert(iter(again), what="limit", total=sum(job.limit or 0 for job in again))

    def drop_duplicates(self) -> None:
        """Convert the parts again that hold a key which an earlier row has, without those rows."""
        with tempfile.TemporaryDirectory(prefix="clipa_eqx-keys-") as folder:
            ordered = self.reports.in_order()
            rows = sum(report.rows_written + report.duplicates for report in ordered)
            # A second round of buckets, by part: even if every row is a duplicate, memory stays bounded.
            keys, drops = (Buckets(Path(folder) / name, rows=rows) for name in ("keys", "drops"))
            affected: set[int] = set()
            with contextlib.closing(keys), contextlib.closing(drops):
                numbers = [report.number for report in ordered]
                for entries in tqdm(_all_entries(self.place, numbers), "read keys", len(numbers), unit="part", delay=2):
                    keys.add(entries, by="high")
                for bucket in tqdm(keys, "compare keys", keys.count, unit="bucket", delay=2):
                    found, differs = repeated(bucket)
                    found = found.copy()
                    found["content"] = differs
                    drops.add(found, by="part")
                    affected |= set(found["part"].tolist())
                total = sum(self._units(self.reports[number]) for number in affected)
                jobs = (job for bucket in drops for job in self._duplicate_jobs(bucket))
                self._convert(jobs, what="duplicate keys", total=total)

    def _duplicate_jobs(self, drops: Entries) -> Iterator[Job]:
        for number in map(int, sorted(set(drops["part"].tolist()))):
            rows = drops[drops["part"] == number]
            if self.reports[number].duplicates != len(rows):  # else it was done before an interruption
                reasons = [DUPLICATE_OTHER if other else DUPLICATE for other in rows["content"].tolist()]
                duplicates = dict(zip(rows["row"].tolist(), reasons, strict=True))
                yield self._job(number, limit=self.reports[number].limit, duplicates=duplicates)

    def _job(self, number: int, *, limit: int | None, duplicates: Mapping[int, str] | None = None) -> Job:
        classes = self.options.class_names or self.plan.class_names
        return Job(
            number=number,
            part=self.plan.parts[number],
            kind=self.kind,
            source=self.source,
            target=self.place.url,
            options=self.options,
            classes=None if classes is None else len(classes),
            limit=limit,
            duplicates=duplicates or {},
        )

    def _convert(self, jobs: Iterator[Job], *, what: str, total: int, before: Sequence[PartReport] = ()) -> None:
        first = next(jobs, None)
        if first is None:
            return
        unit = "row" if counts_rows(self.kind, self.options) else "B"
        progress = Progress(total=total, unit=unit, what=what, done=sum(map(self._units, before)))
        rows: Counter[str] = Counter()
        for report in before:
            rows.update({"read": report.rows_read, **report.dropped})
        try:
            results = run_jobs(convert_part, itertools.chain([first], jobs), workers=self.workers, progress=progress)
            with contextlib.closing(results):
                for _, report in results:
                    self.reports.add(report)
                    rows.update({"read": report.rows_read, **report.dropped})
                    progress.finish(self._units(report), describe_rows(rows))
        finally:
            progress.close()

    def _units(self, report: PartReport) -> int:
        return report.rows_read if counts_rows(self.kind, self.options) else report.size


def _command(kind: Kind, source: str, options: IngestOptions, plan: Plan) -> dict[str, object]:
    """What must be equal for a conversion to be gone on with: everything that decides its output."""
    files = hashlib.sha256()
    files.update(json.dumps([plan.digest, plan.class_names]).encode())
    for part in plan.parts:
        files.update(f"{part.path}\0{part.source}\0{part.size}\0{part.start}\0".encode(errors="backslashreplace"))
    settings: dict[str, Any] = dataclasses.asdict(options)
    changed = {name: value for name, value in settings.items() if value != getattr(IngestOptions(), name)}
    changed = {name: printable(value) if isinstance(value, str) else value for name, value in changed.items()}
    return {
        "kind": kind,
        "source": printable(source),
        **changed,
        **({"columns": plan.columns} if plan.columns else {}),
        "parts": len(plan.parts),
        "source_files": files.hexdigest(),
    }


def _told(columns: Mapping[str, object]) -> str:
    shown = list(columns.items())[:5]
    told = ", ".join(f"{use} from {name!r}" for use, name in shown if not isinstance(name, dict))
    lists = (f"{name} ({_told(one)})" for name, one in shown if isinstance(one, dict))
    return told + "; ".join(lists) + ("; ..." if len(columns) > len(shown) else "")


def _check_apart(source: Place, target: Place) -> None:
    """Refuse a destination that would be read as source when the conversion is gone on with, and the reverse."""
    if source.fs.isfile(source.path):
        return
    root = root_of(source)
    pattern = source.path[len(root) :].lstrip("/")
    if is_pattern(source) and "/" not in pattern and "**" not in pattern:
        return  # `folder/*.tar` reads nothing from the folders in it
    searched = source._replace(path=root or "/")
    for outer, inner, what in ((searched, target, "the destination"), (target, searched, "the source")):
        if holds(outer, inner):
            raise DataError(f"{what} {inner.url} lies inside {outer.url}; choose a destination beside the source")


def _check_options(options: IngestOptions) -> None:
    for name, least in (("min_side", 0), ("max_side", 1), ("limit", 1), ("records_per_shard", 1), ("examples", 0)):
        value: int | None = getattr(options, name)
        if value is not None and value < least:
            raise DataError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if not 1 <= options.jpeg_quality <= 100:
        raise DataError(f"--jpeg-quality must be between 1 and 100, got {options.jpeg_quality}")
    if options.max_side is not None and options.max_side < options.min_side:
        raise DataError(f"--max-side {options.max_side} is smaller than --min-side {options.min_side}")


def _all_entries(place: Place, numbers: list[int]) -> Iterator[Entries]:
    for i in range(0, len(numbers), _AT_ONCE):
        content = read_files(place, [keys_name(number) for number in numbers[i : i + _AT_ONCE]])
        yield from map(unpack_entries, content.values())
