"""Convert one part of a source: rows to shards, with an account of every row; equal input gives equal bytes."""

import dataclasses
import itertools
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from clipa_eqx.data.array_record_writer import write_encoded_shard
from clipa_eqx.data.manifest import ShardInfo
from clipa_eqx.data.records import encode_record
from clipa_eqx.errors import DataError
from conversion.records.checks import check_row
from conversion.records.files import Place, move_in, open_place, write_file
from conversion.records.keys import ENTRY, Fingerprint, content_digest, key_digest, pack_entry
from conversion.records.rows import NO_CLASS, TRUNCATED, IngestOptions, Kind, Lost, Part, Tally, printable
from conversion.records.sources.kinds import is_labeled, read_part

UNFINISHED = "_unfinished"  # folder inside the destination; there only until the manifest is


@dataclass(frozen=True, kw_only=True)
class Job:
    """One part to convert: at most `limit` rows are read, and those in `duplicates` (row -> reason) dropped."""

    number: int
    part: Part
    kind: Kind
    source: str
    target: str
    options: IngestOptions
    classes: int | None = None
    limit: int | None = None
    duplicates: Mapping[int, str] = field(default_factory=dict[int, str])


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """What became of a part. `dropped` counts rows by reason, `examples` has the first of each.

    `captions_dropped` are captions left out of rows that were kept. Fingerprints are sums (see `Fingerprint`).
    `versions` are those of `library_versions`.
    """

    number: int
    size: int
    rows_read: int
    rows_written: int
    dropped: dict[str, int]
    examples: dict[str, list[dict[str, str]]]
    captions_written: int
    captions_dropped: dict[str, int]
    damaged: list[dict[str, object]]
    shards: list[dict[str, Any]]
    keys: str
    content: str
    limit: int | None
    duplicates: int
    ignored_members: int
    versions: dict[str, str]

    def shard_infos(self) -> list[ShardInfo]:
        return [ShardInfo(**shard) for shard in self.shards]

    def files(self) -> dict[str, int]:
        """Sizes by name of the files that the report says are complete."""
        entries = self.rows_written + self.duplicates
        return {shard.name: shard.bytes for shard in self.shard_infos()} | {
            keys_name(self.number): entries * ENTRY.itemsize
        }


def counts_rows(kind: Kind, options: IngestOptions) -> bool:
    """Whether progress is in rows; otherwise it is in bytes of the source."""
    return kind == "captions" or options.limit is not None


def report_name(number: int) -> str:
    return f"{UNFINISHED}/part-{number:06d}.json"


def keys_name(number: int) -> str:
    return f"{UNFINISHED}/part-{number:06d}.keys"


def read_report(data: bytes) -> PartReport | None:
    """The report, None if it is damaged or of another version of this program."""
    try:
        return PartReport(**cast(dict[str, Any], json.loads(data)))
    except (ValueError, TypeError):
        return None


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide bytes."""
    return {name: version(name) for name in ("array_record", "pillow", "simplejpeg")}


def convert_part(job: Job, seen: Callable[[int], None]) -> PartReport:
    """Write the shards of a part, then its keys, then its report, which says that the others are complete.

    `seen` is told the bytes of each picture, or 1 (see `counts_rows`).

    Raises:
        DataError: the source cannot be read, or the options do not fit it, or the target cannot be written.
    """
    try:
        return _convert(job, seen)
    except OSError as error:
        where = f"{printable(job.part.source)} cannot be converted into {printable(job.target)}"
        raise DataError(f"{where}: {error}; the same command goes on from here") from error


def _convert(job: Job, seen: Callable[[int], None]) -> PartReport:
    source, target = open_place(job.source), open_place(job.target)
    account = _Account(job)
    blobs = _blobs(job, source, account, seen)
    shards: list[ShardInfo] = []
    with _staging(target) as folder:
        for first in blobs:
            chunk = itertools.chain([first], itertools.islice(blobs, job.options.records_per_shard - 1))
            name = f"shard-{job.number:06d}-{len(shards):03d}.array_record"
            written = write_encoded_shard(Path(folder) / f"{name}.tmp-{os.getpid()}", chunk)
            move_in(target, Path(folder) / written.name, name)
            shards.append(dataclasses.replace(written, name=name))
    report = account.report(shards)
    write_file(target, keys_name(job.number), bytes(account.entries))
    write_file(target, report_name(job.number), json.dumps(dataclasses.asdict(report)).encode())
    return report


def _staging(target: Place) -> tempfile.TemporaryDirectory[str]:
    # Beside the destination where it is local, so that a rename is enough.
    if target.is_local:
        Path(target.child(UNFINISHED)).mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=target.child(UNFINISHED), prefix="tmp-")
    return tempfile.TemporaryDirectory(prefix="clipa_eqx-")


def _blobs(job: Job, source: Place, account: "_Account", seen: Callable[[int], None]) -> Iterator[bytes]:
    options = job.options
    prefix = f"{_stem(job.part.source)}/" if options.prefix_keys else ""
    labeled, by_rows = is_labeled(job.kind, options), counts_rows(job.kind, options)
    for item in read_part(source, job.part, kind=job.kind, options=options, tally=account.tally):
        left = None if job.limit is None else job.limit - account.rows_read
        if left == 0:
            break
        row = account.rows_read
        if isinstance(item, Lost):
            account.drop(item if left is None else dataclasses.replace(item, count=min(left, item.count)))
            continue
        account.rows_read += 1
        seen(1 if by_rows else len(item.image) if isinstance(item.image, bytes) else 0)
        kept = check_row(item, options=options, key_prefix=prefix, labeled=labeled)
        if isinstance(kept, Lost):
            account.lose(kept)
        elif job.classes is not None and kept.record.label is not None and kept.record.label >= job.classes:
            account.lose(Lost(reason=NO_CLASS, key=kept.record.key, detail=f"label {kept.record.label}"))
        else:
            record = kept.record
            blob = encode_record(record)
            key, content = key_digest(record.key), content_digest(record, encoded=blob)
            # Rows dropped as duplicates keep their entry: the search for duplicates is then the same after a crash.
            account.entries += pack_entry(key, content, part=job.number, row=row)
            if row in job.duplicates:
                account.lose(Lost(reason=job.duplicates[row], key=record.key))
                continue
            account.keep(key, content, captions=len(record.captions), captions_lost=kept.captions_lost)
            yield blob


def _stem(name: str) -> str:
    """The name without its suffix; of `x.tfrecord-00000-of-00002` all of it, for the end tells it from its siblings."""
    return name if re.search(r"-\d+-of-\d+$", name) else os.path.splitext(name)[0]


class _Account:
    """The counts of a part while it is read."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.rows_read = self.rows_written = self.captions = 0
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, list[dict[str, str]]] = {}
        self.captions_dropped: Counter[str] = Counter()
        self.damaged: list[dict[str, object]] = []
        self.keys, self.content = Fingerprint(), Fingerprint()
        self.entries = bytearray()
        self.tally = Tally()

    def keep(self, key: bytes, content: bytes, *, captions: int, captions_lost: tuple[str, ...]) -> None:
        self.rows_written += 1
        self.keys.add(key)
        self.content.add(content)
        self.captions += captions
        self.captions_dropped.update(captions_lost)

    def drop(self, lost: Lost) -> None:
        """Rows that the reader could not give: they are read as they are lost."""
        if lost.rest_unknown or lost.reason == TRUNCATED:
            self.damaged.append(
                {
                    "source": printable(self.job.part.source),
                    "rows_before": self.rows_read,
                    "rows_lost": "unknown" if lost.rest_unknown else lost.count,
                    "error": printable(lost.detail),
                }
            )
        self.rows_read += lost.count
        self.lose(lost)

    def lose(self, lost: Lost) -> None:
        self.dropped[lost.reason] += lost.count
        shown = self.examples.setdefault(lost.reason, [])
        if len(shown) < self.job.options.examples:
            told = {"key": lost.key, "source": self.job.part.source, "detail": lost.detail[:200]}
            shown.append({name: printable(text) for name, text in told.items()})

    def report(self, shards: list[ShardInfo]) -> PartReport:
        return PartReport(
            number=self.job.number,
            size=self.job.part.size,
            rows_read=self.rows_read,
            rows_written=self.rows_written,
            dropped=dict(sorted(self.dropped.items())),
            examples=self.examples,
            captions_written=self.captions,
            captions_dropped=dict(sorted(self.captions_dropped.items())),
            damaged=self.damaged,
            shards=[dataclasses.asdict(shard) for shard in shards],
            keys=self.keys.hex(),
            content=self.content.hex(),
            limit=self.job.limit,
            duplicates=len(self.job.duplicates),
            ignored_members=self.tally.ignored_members,
            versions=library_versions(),
        )
