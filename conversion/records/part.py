"""Conversion of one part of a source: rows to shards, with every row accounted for; equal input gives equal bytes."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np

from clipa_eqx.data.array_record_writer import write_encoded_shard
from clipa_eqx.data.records import LABELS, Record, encode_record
from clipa_eqx.data.shards import ShardInfo
from clipa_eqx.errors import DataError
from clipa_eqx.locks.fence import Fence
from conversion.records.checks import check_row
from conversion.records.filters import Filters, RowFilter, without_used
from conversion.records.keys import Fingerprint, content_digest, key_digest, pack_entry
from conversion.records.labels import Classes
from conversion.records.options import IngestOptions, has_filters, key_prefix
from conversion.records.part_report import (
    PartReport,
    keys_name,
    met_name,
    report_name,
    report_to_json,
    shown_record,
)
from conversion.records.places import Place, open_place
from conversion.records.rows import TRUNCATED, Lost, Part, Row, Tally, printable, short_key, stable
from conversion.records.sorted_ids import Positions, SortedIds
from conversion.records.sources.damage import Scattered
from conversion.records.sources.kinds import counts_rows, is_labeled, read_part
from conversion.records.staging import staging
from conversion.records.subset import SubsetIds, open_ids, pack_positions
from conversion.records.unknown_words import PieceCounts, count_pieces, is_sampled


@dataclass(frozen=True, kw_only=True)
class Job:
    """One part to convert.

    Attributes:
        number: number of the part.
        kind: kind of the source.
        source: local path or URL of the source.
        target: local path or URL of the destination.
        classes: the classes, which labels are checked against.
        limit: maximum number of rows to read.
        duplicates: rows to drop as duplicates, each with its reason.
        fence: state of the lock of the destination in which the part is given out; None if it has no lock.
        ids: the sorted ids of a subset; None without one.
        filters: facts about the filters of the options.
    """

    number: int
    part: Part
    kind: str
    source: str
    target: str
    options: IngestOptions
    classes: Classes = field(default_factory=Classes)
    limit: int | None = None
    duplicates: Mapping[int, str] = field(default_factory=dict[int, str])
    fence: Fence | None = None
    ids: SubsetIds | None = None
    filters: Filters = field(default_factory=Filters)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide bytes."""
    return {name: version(name) for name in ("array_record", "pillow", "simplejpeg")}


def convert_part(job: Job, seen: Callable[[int], None]) -> PartReport:
    """Write the shards of a part, then its keys and the ids of a subset that it met, then its report.

    The report declares the other files complete.

    Args:
        seen: called for each row with the bytes of its image, or with 1 (see ``counts_rows``).

    Raises:
        DataError: the source cannot be read, the options do not fit it, or the target cannot be written.
        LateError: another conversion has the target now, or a later stage of this one has begun.
    """
    try:
        try:
            return _convert(job, seen)
        except Scattered:
            return _convert(dataclasses.replace(job, part=dataclasses.replace(job.part, is_joined=True)), seen)
    except OSError as error:
        where = f"{printable(job.part.source)} cannot be converted into {printable(job.target)}"
        raise DataError(f"{where}: {error}; repeat the same command to resume") from error


def _convert(job: Job, seen: Callable[[int], None]) -> PartReport:
    source, target = open_place(job.source), open_place(job.target)
    account = _Account(job)
    blobs = _blobs(job, source, account, seen, None if job.ids is None else open_ids(target, job.ids))
    shards: list[ShardInfo] = []
    with staging(target, job.fence) as staged:
        for first in blobs:
            chunk = itertools.chain([first], itertools.islice(blobs, job.options.records_per_shard - 1))
            name = f"shard-{job.number:06d}-{len(shards):03d}.array_record"
            shards.append(write_encoded_shard(staged.folder / name, chunk))
            staged.move_in(name)
        met = b"" if job.ids is None else pack_positions(account.met, job.ids)
        if met:
            staged.write(met_name(job.number), met)
        report = dataclasses.replace(account.report(shards), met_bytes=len(met))
        staged.write(keys_name(job.number), bytes(account.entries))
        staged.write(report_name(job.number), report_to_json(report))
    return report


def _blobs(
    job: Job, source: Place, account: "_Account", seen: Callable[[int], None], ids: SortedIds | None
) -> Iterator[bytes]:
    """Yield the encoded records of a part, and enter every row into the account."""
    options = job.options
    prefix = key_prefix(job.part.source, options)
    labeled, by_rows = is_labeled(job.kind, options, job.part.columns), counts_rows(job.kind, options)
    items = read_part(source, job.part, kind=job.kind, options=options, tally=account.tally)
    row_filter = RowFilter(options, job.filters, job.part.columns, ids=ids, key_prefix=prefix)
    judged = row_filter.judged(items, limit=job.limit) if has_filters(options) else ((item, None) for item in items)
    for item, why in judged:
        left = None if job.limit is None else job.limit - account.rows_read
        if left == 0:
            break
        row = account.rows_read
        if isinstance(item, Lost):
            lost = why or item
            account.miss(lost if left is None else dataclasses.replace(lost, count=min(left, lost.count)))
            continue
        account.rows_read += 1
        account.see(item.labels)
        full = item if why is not None else _with_image(item)
        seen(1 if by_rows else len(full.image) if isinstance(full.image, bytes) else 0)
        if why is not None:
            account.drop(why)
            continue
        checked = check_row(
            without_used(full, options), options=options, key_prefix=prefix, labeled=labeled, classes=job.classes
        )
        if isinstance(checked, Lost):
            account.drop(checked)
            continue
        record = checked.record
        blob = encode_record(record)
        key, content = key_digest(record.key), content_digest(record, encoded=blob)
        # Rows dropped as duplicates keep their entry: the search for duplicates is then the same after a crash.
        account.entries += pack_entry(key, content, part=job.number, row=row)
        if row in job.duplicates:
            account.drop(Lost(reason=job.duplicates[row], key=record.key))
            continue
        account.keep(record, key, content, captions_lost=checked.captions_lost)
        yield blob
    account.met = row_filter.met()


def _with_image(row: Row) -> Row:
    """The row with its image read."""
    return dataclasses.replace(row, image=row.image()) if callable(row.image) else row


class _Account:
    """Counts of a part while it is read."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.rows_read = self.rows_written = self.captions = 0
        self.fewest: int | None = None
        self.most = 0
        self.shown: list[dict[str, object]] = []
        self.captions_of_lines = 0
        self.lowest: int | None = None
        self.highest: int | None = None
        self.most_labels = 0
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, list[dict[str, str]]] = {}
        self.captions_dropped: Counter[str] = Counter()
        self.damaged: list[dict[str, object]] = []
        self.keys, self.content = Fingerprint(), Fingerprint()
        self.entries = bytearray()
        self.tally = Tally()
        self.counts = PieceCounts()
        self.met: Positions = np.empty(0, np.int64)

    def see(self, labels: tuple[int | str, ...]) -> None:
        """Note the numbers of labels, also of those without a class."""
        for number in map(self.job.classes.number, labels):
            if number is not None:
                self.lowest = number if self.lowest is None else min(number, self.lowest)
                self.highest = number if self.highest is None else max(number, self.highest)

    def keep(self, record: Record, key: bytes, content: bytes, *, captions_lost: tuple[str, ...]) -> None:
        """Count a record that is written. ``key`` and ``content`` are its digests."""
        self.rows_written += 1
        self.keys.add(key)
        self.content.add(content)
        count = len(record.captions)
        self.captions += count
        if is_sampled(self.rows_written):
            self.counts += count_pieces(record.captions)
        self.captions_dropped.update(captions_lost)
        self.captions_of_lines += sum("\n" in caption.strip() for caption in record.captions)
        self.fewest = count if self.fewest is None else min(count, self.fewest)
        self.most = max(count, self.most)
        if record.label is not None:
            several = record.extra.get(LABELS)
            self.most_labels = max(1 if several is None else str(several).count(",") + 1, self.most_labels)
        # The first, one after at least half of the records, and the last: neighbors are too alike to show a shift.
        is_power = self.rows_written & (self.rows_written - 1) == 0
        self.shown = [*self.shown[: 1 if is_power else 2], shown_record(record)]

    def miss(self, lost: Lost) -> None:
        """Count rows that the reader could not give, as read and as dropped."""
        if lost.rest_unknown or lost.reason == TRUNCATED:
            self.damaged.append(
                {
                    "source": printable(self.job.part.source),
                    "rows_before": self.rows_read,
                    "rows_lost": "unknown" if lost.rest_unknown else lost.count,
                    "error": printable(stable(lost.detail)),
                }
            )
        self.rows_read += lost.count
        self.drop(lost)

    def drop(self, lost: Lost) -> None:
        """Count rows that were read and are not kept."""
        self.dropped[lost.reason] += lost.count
        shown = self.examples.setdefault(lost.reason, [])
        if len(shown) < self.job.options.examples:
            example = {"key": short_key(lost.key), "source": self.job.part.source, "detail": stable(lost.detail)[:200]}
            shown.append({name: printable(text) for name, text in example.items()})

    def report(self, shards: list[ShardInfo]) -> PartReport:
        """The report of the finished part."""
        return PartReport(
            number=self.job.number,
            size=self.job.part.size,
            rows_read=self.rows_read,
            rows_written=self.rows_written,
            dropped=dict(sorted(self.dropped.items())),
            examples=self.examples,
            captions_written=self.captions,
            captions_dropped=dict(sorted(self.captions_dropped.items())),
            fewest_captions=self.fewest,
            most_captions=self.most,
            captions_of_lines=self.captions_of_lines,
            shown=self.shown,
            sampled_captions=self.counts.texts,
            pieces=self.counts.pieces,
            unknown_pieces=self.counts.unknown,
            damaged=self.damaged,
            shards=[dataclasses.asdict(shard) for shard in shards],
            keys=self.keys.hex(),
            content=self.content.hex(),
            limit=self.job.limit,
            duplicates=len(self.job.duplicates),
            ignored_members=self.tally.ignored_members,
            scattered_tars=self.tally.scattered_tars,
            downloads=self.tally.downloads,
            failed_downloads=self.tally.failed_downloads,
            lowest_label=self.lowest,
            highest_label=self.highest,
            most_labels=self.most_labels,
            versions=library_versions(),
        )
