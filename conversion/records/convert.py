"""Conversion of a source into a record folder: plan, parts, limit, duplicate keys, account."""

import contextlib
import dataclasses
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from clipa_eqx.cluster.engine import LOCAL, Engine
from clipa_eqx.data.manifest import Manifest
from conversion.records.account import PartReports, close_account, describe_rows
from conversion.records.command import command_of, describe_columns
from conversion.records.destination import begin, finish, finished_before, finished_parts, forget_part
from conversion.records.duplicates import find_duplicates
from conversion.records.filters import Filters, check_first_rows, check_kind_of_filters
from conversion.records.keys import Repeats
from conversion.records.labels import Classes, check_first_label, classes_of, with_text_labels
from conversion.records.locking import Hold, locked
from conversion.records.manifests import check_name
from conversion.records.nodes import check_workers, opened_workers, shared_places
from conversion.records.options import IngestOptions, check_options, has_filters
from conversion.records.part import Job, convert_part
from conversion.records.part_report import PartReport
from conversion.records.places import Place, check_apart, open_place
from conversion.records.rows import DUPLICATE, DUPLICATE_OTHER, Plan, printable
from conversion.records.scratch import local_folder, shared_folder
from conversion.records.sources.kinds import counts_rows, plan_source
from conversion.records.subset import SubsetIds, opened_subset, prepare_ids, subset_entry, with_usual_column
from conversion.records.subset_file import SubsetFile, hash_subset
from conversion.records.workers import Progress, Workers, run_jobs

_log = logging.getLogger(__name__)


def convert(
    kind: str,
    source: str,
    target: str,
    *,
    options: IngestOptions,
    workers: int | None = None,
    engine: Engine = LOCAL,
    overwrite: bool = False,
) -> Manifest:
    """Convert ``source`` into the record folder ``target`` and return its manifest.

    Every row of the source is written, or counted under the reason why not. The output depends neither on ``workers``
    nor on ``engine``. The same call resumes a conversion that was interrupted in any way, and leaves a finished one
    alone.

    Args:
        kind: a key of ``sources.kinds.SOURCES``.
        source: local path or fsspec URL of a folder or file, or a pattern.
        target: local path or fsspec URL of the folder to write.
        options: what decides the output.
        workers: number of processes, by default only this one; of a cluster the most parts at once, by default as many
            as it takes.
        engine: what runs the work on parts.
        overwrite: whether records in ``target`` are replaced.

    Raises:
        DataError: the source does not fit or cannot be read, or the target holds something else.
        ConfigError: the engine cannot be used.
    """
    given, place = open_place(source), open_place(target)
    check_workers(workers)
    check_options(options)
    check_kind_of_filters(kind, options)
    check_name(place)
    check_apart(given, place)
    with (
        opened_subset(options) as subset,
        opened_workers(engine, workers, kind=kind, source=given, target=place, options=options) as running,
    ):
        return _convert(kind, given, place, options=options, subset=subset, workers=running, overwrite=overwrite)


def _convert(
    kind: str,
    given: Place,
    place: Place,
    *,
    options: IngestOptions,
    subset: SubsetFile | None,
    workers: Workers,
    overwrite: bool,
) -> Manifest:
    chosen, options = options, with_usual_column(options, subset)
    plan = plan_source(given, kind=kind, options=options)
    if plan.columns:
        _log.info("columns of %s: %s", given.url, describe_columns(plan.columns))
    if subset is not None and not any(part.columns.subset for part in plan.parts):
        _log.info("the ids that %s has are looked up as keys of rows", subset.url)
    form = None if subset is None else subset.form
    filters = (
        check_first_rows(given, plan, kind=kind, options=options, form=form) if has_filters(options) else Filters()
    )
    plan = with_text_labels(given, plan, kind=kind, options=options, workers=workers)
    classes = classes_of(plan, options)
    sha256 = None if subset is None else hash_subset(subset)
    command = command_of(kind, given.url, chosen, plan, subset_sha256=sha256)
    done = None if overwrite else finished_before(place, command)
    if done is not None:
        return _as_it_is(done, place)
    with (
        locked(place) as hold,
        shared_places(workers, place) as (workers, check_shared),
    ):

        def check() -> None:
            check_shared()
            hold.remove_left()

        done = begin(place, command, overwrite=overwrite, check=check)
        if done is not None:
            return _as_it_is(done, place)
        run = _Run(
            kind=kind,
            source=given.url,
            place=place,
            hold=hold,
            options=options,
            plan=plan,
            classes=classes,
            ids=None if subset is None or sha256 is None else prepare_ids(place, subset, sha256),
            filters=filters,
            workers=workers,
            reports=PartReports(options.examples),
        )
        for report in finished_parts(place):
            run.reports.add(report)
        run.convert_parts()
        run.apply_limit()
        check_first_label(*run.reports.label_range(), classes)
        run.drop_duplicates()
        manifest = close_account(run.reports, run.accounted_plan(subset), command, options)
        hold.next_stage()
        finish(place, manifest)
    return manifest


def _as_it_is(manifest: Manifest, target: Place) -> Manifest:
    _log.info("%s is already complete: nothing to do", target.url)
    return manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """One conversion, and its steps in the order of the methods."""

    kind: str
    source: str
    place: Place
    hold: Hold
    options: IngestOptions
    plan: Plan
    classes: Classes
    ids: SubsetIds | None
    filters: Filters
    workers: Workers
    reports: PartReports

    def convert_parts(self) -> None:
        """Convert all parts; with a limit, only the first parts that it needs."""
        limit, reports = self.options.limit, self.reports
        if reports:
            _log.info("resuming: %s of %s parts are done", f"{len(reports):,}", f"{len(self.plan.parts):,}")

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
        """Keep the first parts up to the limit; the last one is converted again if it has too many rows."""
        if self.options.limit is None:
            return
        left = self.options.limit
        again: dict[int, int] = {}  # at most one
        self.hold.next_stage()
        for report in self.reports.in_order():
            if left == 0:
                forget_part(self.place, report)
                self.reports.remove(report.number)
                continue
            if report.rows_read > left:
                again[report.number] = left
            left -= min(left, report.rows_read)
        jobs = (self._job(number, limit=limit) for number, limit in again.items())
        self._convert(jobs, what="limit", total=sum(again.values()))

    def drop_duplicates(self) -> None:
        """Convert the parts again that have rows with the key of an earlier row, without those rows."""
        rows = {report.number: report.rows_written + report.duplicates for report in self.reports.in_order()}
        scratch = local_folder if isinstance(self.workers, int) else shared_folder
        with scratch(self.place) as folder:
            found = find_duplicates(self.place, rows, folder=folder, workers=self.workers)
            # Others were done before an interruption.
            again = {number for number, count in found.counts.items() if self.reports[number].duplicates != count}
            jobs = (self._job_without(number, repeats) for number, repeats in found.of_parts(again))
            self._convert(jobs, what="duplicate keys", total=sum(self._units(self.reports[number]) for number in again))

    def _job_without(self, number: int, repeats: Repeats) -> Job:
        reasons = [DUPLICATE_OTHER if differs else DUPLICATE for differs in repeats["differs"].tolist()]
        duplicates = dict(zip(repeats["row"].tolist(), reasons, strict=True))
        return self._job(number, limit=self.reports[number].limit, duplicates=duplicates)

    def accounted_plan(self, subset: SubsetFile | None) -> Plan:
        """The plan, with the account of the ids of a subset in its entries for the manifest."""
        if subset is None or self.ids is None:
            return self.plan
        reports, examples = self.reports.in_order(), self.options.examples
        entry = subset_entry(self.place, subset, self.ids, reports, examples=examples)
        return dataclasses.replace(self.plan, info={**self.plan.info, "subset": entry})

    def _job(self, number: int, *, limit: int | None, duplicates: Mapping[int, str] | None = None) -> Job:
        return Job(
            number=number,
            part=self.plan.parts[number],
            kind=self.kind,
            source=self.source,
            target=self.place.url,
            options=self.options,
            classes=self.classes,
            limit=limit,
            duplicates=duplicates or {},
            fence=self.hold.fence,
            ids=self.ids,
            filters=self.filters,
        )

    def _convert(self, jobs: Iterator[Job], *, what: str, total: int, before: Sequence[PartReport] = ()) -> None:
        self.hold.next_stage()  # a part is converted at most once in a stage, so that late tasks differ in their fence
        first = next(jobs, None)
        if first is None:
            return
        unit = "row" if counts_rows(self.kind, self.options) else "B"
        progress = Progress(total=total, unit=unit, what=what, done=sum(map(self._units, before)))
        rows: Counter[str] = Counter()
        for report in before:
            rows.update({"read": report.rows_read, **report.dropped})
        try:
            results = run_jobs(
                convert_part, itertools.chain([first], jobs), workers=self.workers, progress=progress, name=_name
            )
            with contextlib.closing(results):
                for _, report in results:
                    self.hold.check()
                    self.reports.add(report)
                    rows.update({"read": report.rows_read, **report.dropped})
                    progress.finish(self._units(report), describe_rows(rows))
        finally:
            progress.close()

    def _units(self, report: PartReport) -> int:
        return report.rows_read if counts_rows(self.kind, self.options) else report.size


def _name(job: Job) -> str:
    return f"part {job.number} ({printable(job.part.source)})"
