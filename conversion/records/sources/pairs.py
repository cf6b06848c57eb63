"""Source ``pairs``: images with a text or JSON file of the same name next to each."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from conversion.records.listing import check_readable
from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.rows import ListedRow, Lost, Part, Plan, Row, Tally
from conversion.records.sources.columns import is_image_name
from conversion.records.sources.images import read_image
from conversion.records.sources.listed import list_parts
from conversion.records.sources.planning import FIRST_ROWS, digest_of, ignored_files, named_columns, suffix_of
from conversion.records.sources.samples import IMAGES, Sample, choose_members, peek, row_of
from conversion.records.sources.source import Source, SourceFiles, WrongKind
from conversion.records.sources.splits import choose_split

_TEXTS = (".txt", ".json")


def _plan(files: SourceFiles, options: IngestOptions) -> Plan:
    """Plan parts of ``records_per_shard`` samples: the files of one folder that differ only in their last suffix.

    Raises:
        WrongKind: no image has a text.
        DataError: a file cannot be read, or the first samples lack a column or hold one of the wrong type.
    """
    split = choose_split(files, options, by_folder=True)
    files = split.files
    check_readable(files.place, files.own)
    samples: dict[str, dict[str, str]] = {}  # paths by suffix
    sizes: dict[str, int] = {}
    for file in files.own:
        suffix = suffix_of(file.name)
        name = file.name[: -len(suffix)]
        samples.setdefault(name, {})[suffix[1:]] = file.path
        sizes[name] = sizes.get(name, 0) + file.size
    if samples and not any(_is_pair(paths) for paths in samples.values()):
        raise WrongKind
    rows = [ListedRow(key=name, path="", extra=paths) for name, paths in samples.items()]
    first = (_read_sample(files.place, row, with_images=False) for row in itertools.islice(rows, FIRST_ROWS))
    columns = choose_members(map(peek, first), options=options, where=f"the first samples of {files.place.url}")
    parts = list_parts(rows, list(sizes.values()), source=files.place.url, options=options)
    read = {file.path for file in files.own}
    return Plan(
        parts=tuple(replace(part, columns=columns) for part in parts),
        info={**split.info, **ignored_files(file for file in files.found if file.path not in read)},
        digest=digest_of(files.own),
        columns=named_columns(columns),
    )


def _is_pair(paths: dict[str, str]) -> bool:
    return any(image in paths for image in IMAGES) and any(text[1:] in paths for text in _TEXTS)


def _read_sample(place: Place, row: ListedRow, *, with_images: bool) -> Sample:
    """The content of the files of a sample, by suffix. A file that has been removed since is left out."""
    sample: Sample = {}
    for suffix, path in row.extra.items():
        content = read_image(place, str(path)) if with_images or suffix not in IMAGES else b""
        if isinstance(content, bytes):
            sample[suffix] = content
    return sample


def _read(place: Place, part: Part, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    """The samples of a part. Each line of a text file that is not empty is a caption."""
    for row in part.rows or ():
        if isinstance(row, ListedRow):
            sample = _read_sample(place, row, with_images=not part.labels_only)
            yield row_of(row.key, sample, part.columns, options, is_by_line=True)


PAIRS = Source(
    help="images with a .txt or .json file of the same name next to each",
    files="images with .txt or .json files of the same names",
    owns=lambda name: is_image_name(name) or name.lower().endswith(_TEXTS),
    plan=_plan,
    read=_read,
    marks=(".txt", ".jpg", ".jpeg", ".png"),
    split_help="train, test, ...; A,B for several",
)
