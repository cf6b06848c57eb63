"""Shards of a TFDS data set: forms, splits, missing ones, and the number of rows that TFDS counted in each."""

import logging
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from clipa_eqx.errors import DataError
from conversion.records.listing import FoundFile
from conversion.records.options import IngestOptions
from conversion.records.places import Place, is_pattern
from conversion.records.reading import unreadable
from conversion.records.rows import Part
from conversion.records.sources.planning import files_next_to
from conversion.records.sources.row_counts import as_count
from conversion.records.sources.source import SourceFiles
from conversion.records.sources.values import from_json

INFO = "dataset_info.json"
_log = logging.getLogger(__name__)
_RIEGELI = "riegeli"
# The order decides only if ``dataset_info.json`` does not: ArrayRecord needs no optional package.
_FORMS = ("array_record", "tfrecord", "parquet", _RIEGELI)
_NAME = re.compile(rf"^(?P<data>.+)-(?P<split>[^-.]+)\.(?P<form>{'|'.join(_FORMS)})-(?P<shard>\d+)-of-(?P<shards>\d+)$")


class Shards(NamedTuple):
    """The shards of the chosen splits in one form; ``files`` has them as its own files, and no shards of others."""

    files: SourceFiles
    splits: tuple[str, ...]
    form: str


def match_shard(path: str) -> re.Match[str] | None:
    """The parts of a shard's name ``data-split.form-shard-of-shards``; None for other files."""
    return _NAME.match(path.rpartition("/")[2])


def choose_shards(files: SourceFiles, options: IngestOptions) -> Shards:
    """Choose the split or splits, and one of the forms if the same examples are there in several.

    Raises:
        DataError: several data sets, several splits and none chosen, no such split, a shard is missing, or the form is
            riegeli or differs between splits.
    """
    place = files.place
    shards = {file: match for file in files.own if (match := match_shard(file.name))}
    sets = sorted({f"{file.name[: -len(match[0])]}{match['data']}" for file, match in shards.items()})
    if len(sets) > 1:
        raise DataError(f"{place.url} holds several data sets, give the folder of one: {', '.join(sets[:5])}")
    splits = _choose_splits(place, sorted({match["split"] for match in shards.values()}), options)
    forms = [{match["form"] for match in shards.values() if match["split"] == split} for split in splits]
    form = _choose_form(files, set.intersection(*forms))
    chosen = {file: match for file, match in shards.items() if match["split"] in splits and match["form"] == form}
    _check_complete(place, chosen)
    others = shards.keys() - chosen.keys()
    found = [file for file in files.found if file not in others]
    return Shards(SourceFiles(place=place, found=found, own=list(chosen)), splits, form)


def _choose_splits(place: Place, splits: Sequence[str], options: IngestOptions) -> tuple[str, ...]:
    wanted = splits if options.split is None else options.split.split(",")
    if missing := [split for split in wanted if split not in splits]:
        raise DataError(f"{place.url} has no split {', '.join(missing)}; it has: {', '.join(splits)}")
    if options.split is None and len(splits) > 1:
        raise DataError(f"{place.url} holds several splits, choose with --split A or --split A,B: {', '.join(splits)}")
    return tuple(split for split in splits if split in wanted)


def _choose_form(files: SourceFiles, forms: set[str]) -> str:
    """The form that TFDS itself would read, or another one that can be read here."""
    url = files.place.url
    held = [form for form in _FORMS if form in forms]
    if not held:
        raise DataError(f"{url}: the chosen splits are in different forms; convert each by itself")
    if held == [_RIEGELI]:
        raise DataError(
            f"{url} is in TFDS's form riegeli, which cannot be read here; write its examples as ArrayRecord too, with "
            f"`tfds convert_format --dataset_version_dir={url} --out_file_format=array_record` (packages "
            "tensorflow-datasets, apache-beam, mlcroissant and riegeli), and repeat this command"
        )
    readable = [form for form in held if form != _RIEGELI]
    info: Any = read_next_to(files, INFO)
    main = info.get("fileFormat") if isinstance(info, dict) else None
    form = str(main) if main in readable else readable[0]
    if len(held) > 1:
        _log.info("%s holds the same examples in several forms, %s: read is %s", url, ", ".join(held), form)
    return form


def _check_complete(place: Place, shards: dict[FoundFile, re.Match[str]]) -> None:
    missing: list[str] = []
    by_set: dict[tuple[str, int], set[int]] = {}
    for file, match in shards.items():
        folder = file.path.rpartition("/")[0]
        name = f"{folder}/{match['data']}-{match['split']}.{match['form']}"
        by_set.setdefault((name, int(match["shards"])), set()).add(int(match["shard"]))
    for (name, count), have in by_set.items():
        missing += [f"{name}-{i:05d}-of-{count:05d}" for i in range(count) if i not in have]
    if missing and not is_pattern(place) and not place.fs.isfile(place.path):
        shown = ", ".join(missing[:3])
        raise DataError(f"{place.url} lacks {len(missing)} of its shards: {shown}{', ...' if len(missing) > 3 else ''}")


def read_next_to(files: SourceFiles, name: str) -> object:
    """The content of a JSON file next to the shards; None without a valid one.

    Raises:
        DataError: it cannot be read.
    """
    found = files_next_to(files, lambda _: name)
    try:
        return from_json(files.place.fs.cat_file(found[0].path)) if found else None
    except OSError as error:
        raise unreadable(found[0].path, error) from error
    except ValueError as error:  # no reason to refuse the data
        _log.warning("%s is not used, because it is no valid JSON: %s", found[0].path, error)
        return None


def counted_rows(place: Place, part: Part) -> int | None:
    """Number of rows of a shard by ``dataset_info.json``; None without a valid one."""
    folder, _, base = part.path.rpartition("/")
    match = match_shard(base)
    path = f"{folder}/{INFO}"
    if match is None or not place.fs.exists(path):
        return None
    try:
        content: Any = from_json(place.fs.cat_file(path))
        (split,) = (split for split in content["splits"] if split["name"] == match["split"])
        lengths = split["shardLengths"]
        return as_count(int(lengths[int(match["shard"])])) if len(lengths) == int(match["shards"]) else None
    except (ValueError, LookupError, TypeError, OverflowError):
        return None  # an info of another form is no reason to refuse the data
