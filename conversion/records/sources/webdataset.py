"""Source ``webdataset``: tars, as img2dataset and webdataset write them."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.rows import BAD_ROW, Columns, Lost, Part, Plan, Row, Tally
from conversion.records.sources.columns import CAPTION_COLUMNS, IMAGE_SUFFIXES, check_kept, choose_column
from conversion.records.sources.damage import Damaged, Scattered, with_lost_rest
from conversion.records.sources.planning import FIRST_ROWS, Choice, plan_files
from conversion.records.sources.row_counts import img2dataset_count, statistics_files
from conversion.records.sources.scattered_tars import read_joined
from conversion.records.sources.source import Source, SourceFiles
from conversion.records.sources.tars import Sample, read_samples
from conversion.records.sources.value_types import check_types
from conversion.records.sources.values import as_captions, as_key, as_label, from_json, kept_values

_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_LABEL = ".cls"
_PEEK = 4096  # bytes of a member that show its type
_IMAGES = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)


def _plan(files: SourceFiles, options: IngestOptions) -> Plan:
    place = files.place
    scattered: set[str] = set()

    def first(part: Part) -> Iterator[Sample]:
        return _first_samples(place, part.path, scattered)

    def choose(samples: Iterator[Sample]) -> Choice:
        return Choice(_choose(samples, options=options, where=f"the first samples of {place.url}"))

    plan = plan_files(files, first=first, choose=choose, about=statistics_files(files))
    return replace(plan, parts=tuple(replace(part, is_joined=part.path in scattered) for part in plan.parts))


def _first_samples(place: Place, path: str, scattered: set[str]) -> Iterator[Sample]:
    """Yield the first samples of a tar, with only the first bytes of most members; note a tar that is scattered."""
    samples: list[Sample] = []
    damage: Damaged | None = None
    try:
        for _, sample in itertools.islice(read_samples(place, path, Tally(), is_complete=_is_complete), FIRST_ROWS):
            samples.append(_peek(sample))
    except Damaged as error:
        damage = error
    except Scattered:
        samples = []
    # If no sample has a second member, these may follow behind all first ones.
    if damage is None and all(len(sample) == 1 for sample in samples):
        for _, sample in read_joined(place, path, Tally()):
            if len(sample) > 1:
                scattered.add(path)
            yield _peek(sample)
        return
    yield from samples
    if damage is not None:
        raise damage


def _peek(sample: Sample) -> Sample:
    return {suffix: content if suffix == "json" else content[:_PEEK] for suffix, content in sample.items()}


def _choose(samples: Iterator[Sample], *, options: IngestOptions, where: str) -> Columns:
    """Choose columns: members are named with a dot, fields of the JSON member without.

    A name that was asked for is looked up among members first, then among fields.
    """
    members: dict[str, None] = {}
    fields: dict[str, None] = {}
    first: list[Mapping[str, object]] = []
    several = False
    for sample in samples:
        several |= sum(name in sample for name in _IMAGES) > 1
        found: dict[str, object] = {
            f".{suffix}": None if suffix in _IMAGES else content for suffix, content in sample.items()
        }
        members.update(dict.fromkeys(found))
        with contextlib.suppress(ValueError):
            described = {name: value for name, value in _fields(sample).items() if not name.startswith(".")}
            fields.update(dict.fromkeys(described))
            found = {**described, **found}
        first.append(found)
    names = members | fields
    if not names:
        return Columns()

    def asked(name: str | None) -> str | None:
        return f".{name}" if name is not None and f".{name}" in members else name

    check_kept({*(name[1:] for name in members), *fields}, options=options, where=where)
    image = choose_column(asked(options.image_column), members, IMAGE_SUFFIXES, what="image", where=where, needed=True)
    columns = Columns(
        # Suffixes of images are formats of one thing, unless a sample holds two, such as an image and its mask.
        image=image if several or options.image_column else None,
        caption=choose_column(
            asked(options.caption_column),
            names,
            (".txt", *CAPTION_COLUMNS),
            what="caption",
            where=where,
            needed=options.label_column is None,
        ),
        key=choose_column(options.key_column, fields, (), what="key", where=where),
        label=choose_column(asked(options.label_column), names, (_LABEL,), what="label", where=where),
    )
    check_types(first, columns, where=where)
    return columns


def _read(place: Place, part: Part, options: IngestOptions, tally: Tally) -> Iterator[Row | Lost]:
    """The samples of a tar in order, with one lost row for the rest of a tar that is cut or damaged.

    A member that is a link, a device or sparse has no content. ``Scattered`` is raised unless the part ``is_joined``.
    """
    samples = (
        read_joined(place, part.path, tally)
        if part.is_joined
        else read_samples(place, part.path, tally, is_complete=_is_complete)
    )
    rows = (_row(name, sample, part.columns, options) for name, sample in samples)
    return with_lost_rest(rows, part, expected=img2dataset_count(place, part))


def _row(key: str, sample: Sample, columns: Columns, options: IngestOptions) -> Row | Lost:
    fields: Mapping[str, object] = {}
    try:
        fields = _fields(sample)
    except ValueError as error:
        # The JSON member matters only if something is wanted from it.
        if options.keep or not all(_is_member(name) for name in (columns.caption, columns.label, columns.key) if name):
            return Lost(reason=BAD_ROW, key=key, detail=f"its JSON: {error}")

    def value(name: str | None) -> object:
        return None if name is None else sample.get(name[1:]) if _is_member(name) else fields.get(name)

    suffixes = _IMAGES if columns.image is None else (columns.image[1:],)
    wanted = as_key(value(columns.key))
    return Row(
        key=key if wanted is None else wanted,
        image=next((sample[name] for name in suffixes if name in sample), None),
        captions=() if (text := value(columns.caption)) is None else as_captions(text),
        label=as_label(value(columns.label)),
        extra=kept_values({**sample, **fields}, options.keep),
    )


def _is_complete(sample: Sample) -> bool:
    """Check whether a sample has an image and a text."""
    return any(name in sample for name in _IMAGES) and any(name in sample for name in ("txt", "cls"))


def _fields(sample: Sample) -> Mapping[str, object]:
    """The fields of the JSON member. Raises ``ValueError`` if it is broken."""
    parsed = from_json(sample["json"]) if "json" in sample else None
    return cast(dict[str, object], parsed) if isinstance(parsed, dict) else {}


def _is_member(name: str) -> bool:
    return name.startswith(".")


WEBDATASET = Source(
    help="tars of img2dataset or others; .tar.gz too",
    files="tar files",
    owns=lambda name: name.lower().endswith(_SUFFIXES),
    plan=_plan,
    read=_read,
    marks=(".tar", ".tgz"),
    has_prefix=True,
)
