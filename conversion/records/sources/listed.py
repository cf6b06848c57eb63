"""Lists of images held in memory: cut into parts, and read with the images that they name."""

from collections.abc import Iterator

from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.rows import NO_CLASS_FOLDER, ListedRow, Lost, Part, Row
from conversion.records.sources.images import read_image


def list_parts(rows: list[ListedRow], sizes: list[int], *, source: str, options: IngestOptions) -> tuple[Part, ...]:
    """Cut a list into parts of ``records_per_shard`` rows."""
    step = options.records_per_shard
    return tuple(
        Part(source=f"{source}, rows {i} on", path="", size=sum(sizes[i : i + step]), rows=tuple(rows[i : i + step]))
        for i in range(0, len(rows), step)
    )


def read_listed(place: Place, part: Part, options: IngestOptions, *, labeled: bool) -> Iterator[Row | Lost]:
    """The rows of a part with the images they name (see ``read_image``). ``labeled`` rows need a class folder."""
    for row in part.rows or ():
        if labeled and row.label is None:
            yield Lost(reason=NO_CLASS_FOLDER, key=row.key)
            continue
        image = read_image(place, row.path, images=options.images)
        yield Row(key=row.key, image=image, captions=row.captions, label=row.label, extra=row.extra)
