"""Source ``pairs``: images with a text or JSON file of the same name next to each."""

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

from conversion.records.listing import FoundFile, check_readable
from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.rows import Image, ListedRow, Lost, Part, Plan, Row, Tally
from conversion.records.sources.columns import is_image_name
from conversion.records.sources.images import read_image
from conversion.records.sources.listed import list_parts
from conversion.records.sources.planning import FIRST_ROWS, digest_of, ignored_files, named_columns, suffix_of
from conversion.records.sources.samples import IMAGES, Sample, choose_members, image_of, peek, row_of
from conversion.records.sources.source import Source, SourceFiles, WrongKind
from conversion.records.sources.splits import choose_split

_TEXTS = (".txt", ".json")


def _plan(files: SourceFiles, options: IngestOptions) -> Plan:
    """Plan parts of ``records_per_shard`` samples: the files of one folder that differ only in their last suffix.

    Raises:
        WrongKind: no image has a text.
        DataError: a file cannot be read, or the first samples lack a column or hold one of the wrong type.
    """
    suffixes: dict[str, set[str]] = {}
    for file in files.own:
        suffix = suffix_of(file.name)
        suffixes.setdefault(file.name[: -len(suffix)], set()).add(suffix[1:])
    if suffixes and not any(map(_is_pair, suffixes.values())):
        raise WrongKind
    split = choose_split(files, options, by_folder=True)
    files = split.files
    check_readable(files.place, files.own)
    named: dict[str, list[FoundFile]] = {}
    for file in files.own:
        named.setdefault(file.name[: -len(suffix_of(file.name))], []).append(file)
    samples = [
        (name, sample) for name, held in named.items() for sample in _samples(held, options.image_column is not None)
    ]
    if samples and not any(_is_pair(sample) for _, sample in samples):
        raise WrongKind
    sizes = [sum(file.size for file in sample.values()) for _, sample in samples]
    rows = [
        ListedRow(key=name, path="", extra={suffix: file.path for suffix, file in sample.items()})
        for name, sample in samples
    ]
    first = (_read_sample(files.place, row, without=IMAGES) for row in itertools.islice(rows, FIRST_ROWS))
    columns = choose_members(map(peek, first), options=options, where=f"the first samples of {files.place.url}")
    parts = list_parts(rows, sizes, source=files.place.url, options=options)
    read = {file.path for file in files.own}
    return Plan(
        parts=tuple(replace(part, columns=columns) for part in parts),
        info={**split.info, **ignored_files(file for file in files.found if file.path not in read)},
        digest=digest_of(files.own),
        columns=named_columns(columns),
    )


def _samples(files: Sequence[FoundFile], is_image_chosen: bool) -> list[dict[str, FoundFile]]:
    """The samples of files that share a name, by suffix.

    A second file with a suffix, as ``a.JPG`` next to ``a.jpg``, begins a sample of its own, which is a duplicate key.
    So does a second image, unless an option chooses a suffix; it has the texts of the first.
    """
    samples: list[dict[str, FoundFile]] = []
    for file in files:
        suffix = suffix_of(file.name)[1:]
        is_single = suffix in IMAGES and not is_image_chosen
        free = (one for one in samples if suffix not in one and not (is_single and _has_image(one)))
        sample = next(free, None)
        if sample is None:
            samples.append(sample := {})
        sample[suffix] = file
    texts = {suffix: file for suffix, file in samples[0].items() if suffix not in IMAGES}
    return [samples[0], *({**texts, **sample} if _has_image(sample) else sample for sample in samples[1:])]


def _has_image(sample: Collection[str]) -> bool:
    return any(image in sample for image in IMAGES)


def _is_pair(sample: Collection[str]) -> bool:
    return _has_image(sample) and any(text[1:] in sample for text in _TEXTS)


def _read_sample(place: Place, row: ListedRow, *, without: Collection[str] = ()) -> Sample:
    """The content of the files of a sample, by suffix. A file that has been removed since is left out.

    Args:
        without: suffixes of files that are not read, and are empty.
    """
    sample: Sample = {}
    for suffix, path in row.extra.items():
        content = b"" if suffix in without else read_image(place, str(path))
        if isinstance(content, bytes):
            sample[suffix] = content
    return sample


def _read(place: Place, part: Part, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    """The samples of a part. Each line of a text file that is not empty is a caption."""
    for row in part.rows or ():
        if isinstance(row, ListedRow):
            # An image is read only once the row is wanted, unless its bytes are a value.
            are_values = not part.labels_only and any(name in IMAGES for name in part.columns.values)
            sample = _read_sample(place, row, without=() if are_values else IMAGES)
            found = row_of(row.key, sample, part.columns, is_by_line=True)
            if isinstance(found, Row) and not part.labels_only:
                found = replace(found, image=partial(_read_image, place, row, part.columns.image))
            yield found


def _read_image(place: Place, row: ListedRow, column: str | None) -> Image:
    return image_of(_read_sample(place, row, without=[suffix for suffix in row.extra if suffix not in IMAGES]), column)


PAIRS = Source(
    help="images with a .txt or .json file of the same name next to each",
    files="images with .txt or .json files of the same names",
    owns=lambda name: is_image_name(name) or name.lower().endswith(_TEXTS),
    plan=_plan,
    read=_read,
    marks=(".txt", ".jpg", ".jpeg", ".png"),
    split_help="train, test, ...; A,B for several",
)
