"""Report of a converted part, and the names of the files of a part in ``_unfinished``."""

import json
from dataclasses import asdict, dataclass
from typing import Any, cast

from clipa_eqx.data.records import LABELS, Record
from clipa_eqx.data.shards import ShardInfo
from conversion.records.keys import ENTRY
from conversion.records.rows import shortened

_LONGEST = 100  # characters of a text that is shown
UNFINISHED = "_unfinished"  # folder inside the destination; it exists only until the manifest does
SUBSET = "subset-"  # start of the names of files in `_unfinished` with the ids of a subset


@dataclass(frozen=True, kw_only=True, slots=True)
class PartReport:
    """The result of a part. The names of all fields are in files, which later versions read to resume.

    Attributes:
        number: number of the part.
        size: size of the part (see ``Part``).
        rows_read: rows read, including lost ones.
        rows_written: records written.
        dropped: rows by reason.
        examples: the first rows dropped for each reason.
        captions_written: captions of the records.
        captions_dropped: captions left out of records, by reason.
        fewest_captions: fewest captions of a record; None without records.
        most_captions: most captions of a record.
        captions_of_lines: captions of the records that have several lines.
        shown: up to three records, spread over the part, as the manifest shows them.
        sampled_captions: captions whose word pieces were counted.
        pieces: their pieces.
        unknown_pieces: those of the pieces that the packaged vocabulary does not have.
        damaged: damaged files, as in the manifest.
        shards: entries of the shards for the manifest.
        keys: fingerprint of the keys.
        content: fingerprint of the contents.
        limit: maximum number of rows that was set for this part.
        duplicates: rows dropped as duplicates.
        ignored_members: members of a tar that belong to no row.
        scattered_tars: tars whose samples had to be joined, 0 or 1.
        met_bytes: size of the file with the positions of the ids of a subset that rows have; 0 if there is none.
        downloads: downloads that img2dataset reports for the part, if its rows are those that succeeded.
        failed_downloads: those that failed.
        lowest_label: lowest class number of any row, counted from 0, also of one without a class; None without labels.
        highest_label: the highest.
        most_labels: most labels of a record; 0 without labels.
        versions: versions of the libraries that decide bytes.
    """

    number: int
    size: int
    rows_read: int
    rows_written: int
    dropped: dict[str, int]
    examples: dict[str, list[dict[str, str]]]
    captions_written: int
    captions_dropped: dict[str, int]
    fewest_captions: int | None
    most_captions: int
    captions_of_lines: int
    shown: list[dict[str, object]]
    sampled_captions: int
    pieces: int
    unknown_pieces: int
    damaged: list[dict[str, object]]
    shards: list[dict[str, Any]]
    keys: str
    content: str
    limit: int | None
    duplicates: int
    ignored_members: int
    scattered_tars: int
    lowest_label: int | None
    highest_label: int | None
    most_labels: int
    versions: dict[str, str]
    met_bytes: int = 0
    downloads: int
    failed_downloads: int

    def shard_infos(self) -> list[ShardInfo]:
        """The shards as the manifest describes them."""
        return [ShardInfo(**shard) for shard in self.shards]

    def files(self) -> dict[str, int]:
        """Sizes by name of the files that the report declares complete."""
        entries = self.rows_written + self.duplicates
        met = {met_name(self.number): self.met_bytes} if self.met_bytes else {}
        return {shard.name: shard.bytes for shard in self.shard_infos()} | {
            keys_name(self.number): entries * ENTRY.itemsize,
            **met,
        }


def shown_record(record: Record) -> dict[str, object]:
    """A record as the manifest shows it to a person: key, first caption and label, shortened."""
    label = record.extra.get(LABELS, record.label)
    return {
        "key": shortened(record.key, _LONGEST),
        **({"caption": shortened(record.captions[0], _LONGEST)} if record.captions else {}),
        **({} if label is None else {"label": label}),
    }


def report_name(number: int) -> str:
    """The file, inside the destination, with the report of a part."""
    return f"{UNFINISHED}/part-{number:06d}.json"


def keys_name(number: int) -> str:
    """The file, inside the destination, with an ENTRY for each row of a part that was kept or is a duplicate."""
    return f"{UNFINISHED}/part-{number:06d}.keys"


def met_name(number: int) -> str:
    """The file, inside the destination, with the positions of the ids of the subset that rows of a part have."""
    return f"{UNFINISHED}/part-{number:06d}.met"


def report_to_json(report: PartReport) -> bytes:
    """The content of the file of a report."""
    return json.dumps(asdict(report)).encode()


def report_from_json(data: bytes) -> PartReport | None:
    """The report; None if it is damaged or from a version with other fields."""
    try:
        return PartReport(**cast(dict[str, Any], json.loads(data)))
    except (ValueError, TypeError):
        return None
