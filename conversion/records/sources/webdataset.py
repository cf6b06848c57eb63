"""Source ``webdataset``: tars, as img2dataset and webdataset write them."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.rows import Lost, Part, Plan, Row, Tally
from conversion.records.sources.damage import Damaged, Scattered, with_lost_rest
from conversion.records.sources.planning import FIRST_ROWS, Choice, plan_files
from conversion.records.sources.row_counts import img2dataset_count, statistics_files
from conversion.records.sources.samples import IMAGES, Sample, choose_members, peek, row_of
from conversion.records.sources.scattered_tars import read_joined
from conversion.records.sources.source import Source, SourceFiles
from conversion.records.sources.tars import TAR_SUFFIXES, read_samples


def _plan(files: SourceFiles, options: IngestOptions) -> Plan:
    place = files.place
    scattered: set[str] = set()

    def first(part: Part) -> Iterator[Sample]:
        return _first_samples(place, part.path, scattered)

    def choose(samples: Iterator[Sample]) -> Choice:
        return Choice(choose_members(samples, options=options, where=f"the first samples of {place.url}"))

    plan = plan_files(files, first=first, choose=choose, about=statistics_files(files))
    return replace(plan, parts=tuple(replace(part, is_joined=part.path in scattered) for part in plan.parts))


def _first_samples(place: Place, path: str, scattered: set[str]) -> Iterator[Sample]:
    """Yield the first samples of a tar, with only the first bytes of most members; note a tar that is scattered."""
    samples: list[Sample] = []
    damage: Damaged | None = None
    try:
        for _, sample in itertools.islice(read_samples(place, path, Tally(), is_complete=_is_complete), FIRST_ROWS):
            samples.append(peek(sample))
    except Damaged as error:
        damage = error
    except Scattered:
        samples = []
    # If no sample has a second member, these may follow behind all first ones.
    if damage is None and all(len(sample) == 1 for sample in samples):
        for _, sample in read_joined(place, path, Tally()):
            if len(sample) > 1:
                scattered.add(path)
            yield peek(sample)
        return
    yield from samples
    if damage is not None:
        raise damage


def _read(place: Place, part: Part, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    """The samples of a tar in order, with one lost row for the rest of a tar that is cut or damaged.

    A member that is a link, a device or sparse has no content. ``Scattered`` is raised unless the part ``is_joined``.
    """
    samples = (
        read_joined(place, part.path, tally)
        if part.is_joined
        else read_samples(place, part.path, tally, is_complete=_is_complete)
    )
    rows = (row_of(name, sample, part.columns, options) for name, sample in samples)
    return with_lost_rest(rows, part, expected=img2dataset_count(place, part))


def _is_complete(sample: Sample) -> bool:
    """Check whether a sample has an image and a text."""
    return any(name in sample for name in IMAGES) and any(name in sample for name in ("txt", "cls"))


WEBDATASET = Source(
    help="tars of img2dataset or others; .tar.gz too",
    files="tar files",
    owns=lambda name: name.lower().endswith(TAR_SUFFIXES),
    plan=_plan,
    read=_read,
    marks=(".tar", ".tgz"),
    has_prefix=True,
)
