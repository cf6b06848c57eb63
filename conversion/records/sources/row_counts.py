"""Numbers of rows and downloads that img2dataset records next to its shards."""

from typing import cast

from conversion.records.listing import FoundFile
from conversion.records.places import Place
from conversion.records.rows import Part, Tally
from conversion.records.sources.planning import files_next_to
from conversion.records.sources.source import SourceFiles
from conversion.records.sources.values import from_json

_MOST_ROWS = 2**40
_SUFFIX = "_stats.json"
_END_OF_TABLE = b"PAR1"  # of every Parquet file


def statistics_files(files: SourceFiles) -> list[FoundFile]:
    """The statistics of all shards of a source, such as ``00012_stats.json`` next to ``00012.tar``."""
    return files_next_to(files, lambda file: f"{_stem(file.name)}{_SUFFIX}")


def img2dataset_count(place: Place, part: Part, tally: Tally) -> int | None:
    """Number of rows that img2dataset says it wrote to a shard; None without valid statistics.

    The downloads of the shard are added to ``tally``: the shard itself holds only those that succeeded.
    """
    path = _next_to(part, _SUFFIX)
    if not place.fs.exists(path):
        return None
    try:
        content = from_json(place.fs.cat_file(path))
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    statistics = cast(dict[str, object], content)
    successes, downloads = as_count(statistics.get("successes")), as_count(statistics.get("count"))
    if successes is not None and downloads is not None and successes <= downloads:
        tally.downloads += downloads
        tally.failed_downloads += downloads - successes
    return successes


def is_unfinished(place: Place, part: Part) -> bool:
    """Check whether img2dataset was stopped while it wrote a shard: the table next to it has no end.

    It opens the table together with the shard, and completes it first.
    """
    path = _next_to(part, ".parquet")
    return place.fs.exists(path) and place.fs.tail(path, len(_END_OF_TABLE)) != _END_OF_TABLE


def _next_to(part: Part, suffix: str) -> str:
    return f"{part.path.rpartition('/')[0]}/{_stem(part.path)}{suffix}"


def as_count(value: object) -> int | None:
    """A number of rows of a file; None for a value that cannot be one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_ROWS else None


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]
