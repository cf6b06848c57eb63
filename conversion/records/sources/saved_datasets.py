"""Folders that the library ``datasets`` saves: Arrow files, and next to them ``state.json`` with their names."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from clipa_eqx.errors import DataError
from conversion.records.listing import FoundFile
from conversion.records.reading import read_files
from conversion.records.sources.source import SourceFiles
from conversion.records.sources.values import from_json

_STATE = "state.json"
_NOTES = (_STATE, "dataset_info.json", "dataset_dict.json")
_INDICES = ("_indices_files", "_indices_data_files")  # of versions before 2.0


def without_caches(files: SourceFiles) -> SourceFiles:
    """The files without Arrow files that are no part of a saved data set, such as results of ``map``.

    Raises:
        DataError: a file that ``state.json`` names is missing, or it names indices; or there are Parquet files too.
    """
    place = files.place
    suffixes = {file.name.rpartition(".")[2].lower() for file in files.own}
    if len(suffixes) > 1:
        raise DataError(
            f"{place.url} holds both .parquet and .arrow files, perhaps of the same rows; give the folder of one kind, "
            f"or a pattern such as '{place.url.rstrip('/')}/**/*.parquet'"
        )
    if suffixes != {"arrow"} or place.fs.isfile(place.path):
        return files
    names = {file.name for file in files.own}
    unwanted = {name for name in names if name.rpartition("/")[2].startswith("cache-")}
    states = [file for file in files.found if file.name.rpartition("/")[2] == _STATE]
    for file in states:
        folder = "".join(file.name.rpartition("/")[:2])
        root = file.path.removesuffix(file.name)
        content = read_files(place._replace(path=root), [file.name])[file.name]
        listed = _listed(content, where=file.path)
        if listed is None:
            continue
        wanted = {f"{folder}{name}" for name in listed}
        if missing := sorted(wanted - names):
            raise DataError(f"{place.url} lacks {missing[0]}, which {file.name} names; fetch it, or save the set again")
        unwanted |= {name for name in names - wanted if name.rpartition("/")[0] == folder.rstrip("/")}
    return replace(files, own=[file for file in files.own if file.name not in unwanted] or files.own)


def notes(files: SourceFiles) -> list[FoundFile]:
    """The files that ``datasets`` writes about the Arrow files of a source."""
    is_saved = any(file.name.lower().endswith(".arrow") for file in files.own)
    return [file for file in files.found if is_saved and file.name.rpartition("/")[2] in _NOTES]


def _listed(content: bytes, *, where: str) -> list[str] | None:
    """The names of the Arrow files that a state lists; None if it is no such state."""
    try:
        state = cast("Mapping[str, Any]", from_json(content))
        names = [str(file["filename"]) for file in state["_data_files"]]
        has_indices = any(state.get(name) for name in _INDICES)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    if has_indices:
        raise DataError(
            f"{where}: the set was saved with indices that choose its rows, which are not read; load it with "
            "load_from_disk, and write it with flatten_indices().to_parquet(FILE)"
        )
    return names
