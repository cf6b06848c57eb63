"""Source ``webdataset``: tars, as img2dataset, webdataset and CLIP_benchmark write them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from clipa_eqx.errors import DataError, counted
from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.rows import Columns, Lost, Part, Plan, Row, Tally
from conversion.records.sources.clip_benchmark import Export, find_export
from conversion.records.sources.damage import Damaged, Scattered, with_lost_rest
from conversion.records.sources.planning import FIRST_ROWS, Choice, plan_files
from conversion.records.sources.row_counts import img2dataset_count, statistics_files
from conversion.records.sources.samples import IMAGES, Sample, choose_members, decompressed, peek, row_of
from conversion.records.sources.scattered_tars import read_joined
from conversion.records.sources.source import Source, SourceFiles
from conversion.records.sources.splits import choose_split
from conversion.records.sources.tars import TAR_SUFFIXES, read_samples
from conversion.records.sources.values import npy_length

_NOT_READ = (".tar.bz2", ".tar.xz", ".tar.zst")


def _plan(files: SourceFiles, options: IngestOptions) -> Plan:
    """Plan one part per tar, those of one split.

    Raises:
        DataError: a compression that is not read, several splits and none chosen, no such split, or the first samples
            lack a column; also whatever ``find_export`` and ``choose_split`` raise.
    """
    if others := [file for file in files.own if file.name.lower().endswith(_NOT_READ)]:
        raise DataError(
            f"{others[0].path}: tar files compressed by bzip2, xz or zstd are not read "
            f"({counted(len(others), 'file')}); decompress them, for example with bunzip2, unxz or unzstd, or give a "
            "pattern of the others"
        )
    export = find_export(files, options)
    if export is not None:
        plan = _plan_tars(export.files, export.options(options), export.info, export)
        is_retrieval = export.kind == "retrieval"
        return replace(plan, parts=tuple(replace(part, has_caption_lines=is_retrieval) for part in plan.parts))
    split = choose_split(files, options)
    return _plan_tars(split.files, options, split.info)


def _plan_tars(
    files: SourceFiles, options: IngestOptions, info: Mapping[str, object], export: Export | None = None
) -> Plan:
    place = files.place
    where = f"the first samples of {place.url}"
    scattered: set[str] = set()

    def first(part: Part) -> Iterator[Sample]:
        return _first_samples(place, part.path, scattered)

    def choose(samples: Iterator[Sample]) -> Choice:
        if export is None:
            return Choice(choose_members(samples, options=options, where=where))
        held = list(samples)
        columns = choose_members(iter(held), options=options, where=where)
        _check_vectors(held, columns, options.class_names or export.class_names, where=where)
        return Choice(columns, export.class_names)

    about = [*statistics_files(files), *(export.about if export else ())]
    plan = plan_files(files, first=first, choose=choose, about=about, info=info)
    return replace(plan, parts=tuple(replace(part, is_joined=part.path in scattered) for part in plan.parts))


def _check_vectors(samples: list[Sample], columns: Columns, names: Sequence[str] | None, *, where: str) -> None:
    """Refuse vectors of labels that have more or fewer elements than there are classes."""
    if names is None or columns.label != ".npy":
        return
    lengths = {npy_length(sample["npy"]) for sample in samples if "npy" in sample} - {None}
    if others := sorted(length for length in lengths if length != len(names) and length is not None):
        raise DataError(
            f"{where} have vectors of {others[0]:,} labels (.npy), and there are {counted(len(names), 'class name')}; "
            "give one name for each element with --class-names"
        )


def _first_samples(place: Place, path: str, scattered: set[str]) -> Iterator[Sample]:
    """Yield the first samples of a tar, with only the first bytes of most members; note a tar that is scattered."""
    samples: list[Sample] = []
    damage: Damaged | None = None
    try:
        for _, sample in itertools.islice(read_samples(place, path, Tally(), is_complete=_is_complete), FIRST_ROWS):
            samples.append(peek(decompressed(sample)))
    except Damaged as error:
        damage = error
    except Scattered:
        samples = []
    # If no sample has a second member, these may follow behind all first ones.
    if damage is None and all(len(sample) == 1 for sample in samples):
        for _, sample in read_joined(place, path, Tally()):
            if len(sample) > 1:
                scattered.add(path)
            yield peek(decompressed(sample))
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
    as_row = partial(row_of, is_by_line=part.has_caption_lines or options.caption_lines)
    rows = (as_row(name, decompressed(sample), part.columns) for name, sample in samples)
    return with_lost_rest(rows, part, expected=img2dataset_count(place, part, tally))


def _is_complete(sample: Sample) -> bool:
    """Check whether a sample has an image and a text."""
    return any(name in sample for name in IMAGES) and any(name in sample for name in ("txt", "cls", "npy"))


WEBDATASET = Source(
    help="tars of img2dataset, webdataset, CLIP_benchmark or others; .tar.gz too",
    files="tar files",
    owns=lambda name: name.lower().endswith((*TAR_SUFFIXES, *_NOT_READ)),
    plan=_plan,
    read=_read,
    marks=(".tar", ".tgz"),
    has_prefix=True,
    has_texts=True,
    split_help="train, test, ...; A,B for several, not of CLIP_benchmark's sets",
)
