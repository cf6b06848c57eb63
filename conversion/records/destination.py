"""The folder that a conversion writes: begun, gone on with, refused, finished."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import cast

from clipa_eqx.data.manifest import MANIFEST_NAME, Manifest, manifest_from_json, manifest_to_json
from clipa_eqx.errors import DataError
from clipa_eqx.replacing import is_temporary
from conversion.records.files import Place, list_names, list_sizes, read_files, write_file
from conversion.records.part import UNFINISHED, PartReport, read_report
from conversion.records.rows import printable

_COMMAND = f"{UNFINISHED}/command.json"
_OVERWRITING = "overwriting"  # in a command that began by overwriting
_CLEARING = {"kind": "being overwritten"}
_UNREADABLE = {"kind": "unreadable"}
_AT_ONCE = 64  # reports fetched together
_SHARD = re.compile(r"shard-\d{6,}-\d{3,}\.array_record")


def check_name(target: Place) -> None:
    """Raise DataError if no shard can be opened in a folder of this name: the library for them wants Unicode."""
    if printable(target.path) != target.path:
        raise DataError(f"{printable(target.path)} has a name that is not UTF-8; choose another for the records")


def begin(target: Place, command: Mapping[str, object], *, overwrite: bool) -> Manifest | None:
    """Make the folder ready for `command`; the manifest if this very command has finished there before.

    What holds no record is in nobody's way, and begun again: what was missing may be there now. To overwrite is to
    begin anew, unless the same command has done that before it was interrupted.

    Raises:
        DataError: the folder holds something else, another command has begun or finished there, or a shard of the
            finished set is missing.
    """
    names = list_names(target)
    wanted = cast(dict[str, object], json.loads(json.dumps(command)))
    manifest = read_manifest_of(target) if MANIFEST_NAME in names else None
    begun = _read_command(target) if UNFINISHED in names else None
    overwrote = begun is not None and begun.pop(_OVERWRITING, False)
    if manifest is not None and not overwrite and manifest.rows_written and manifest.info.get("command") == wanted:
        _check_shards(target, manifest)
        _remove_unfinished(target)  # a kill between the last two steps has left it
        return manifest
    if manifest is not None and not overwrite and manifest.rows_written > 0:
        raise DataError(
            f"{target.url} holds records already ({_differences(manifest.info.get('command'), wanted)}); "
            "choose another folder, or --overwrite"
        )
    if manifest is None and begun == wanted and (overwrote or not overwrite):
        return None
    if manifest is None and begun is not None and not overwrite and (begun == _CLEARING or _has_parts(target)):
        raise DataError(
            f"{target.url} holds an unfinished conversion by another command ({_differences(begun, wanted)}); "
            "repeat that command to go on with it, choose another folder, or --overwrite"
        )
    if manifest is None and begun is None and not _is_empty(target, names):
        raise DataError(f"{target.url} exists and holds other things than records; choose another folder")
    if manifest is not None or begun is not None:
        _clear(target, names, manifest)
    write_file(target, _COMMAND, json.dumps({**command, **({_OVERWRITING: True} if overwrite else {})}).encode())
    return None


def _check_shards(target: Place, manifest: Manifest) -> None:
    sizes = list_sizes(target)
    for shard in manifest.shards:
        size = sizes.get(shard.name)
        if size != shard.bytes:
            problem = "is missing" if size is None else f"has {size:,} bytes instead of {shard.bytes:,}"
            raise DataError(
                f"{target.url}: {shard.name} {problem}; restore it, or convert the source again with --overwrite"
            )


def _has_parts(target: Place) -> bool:
    return any(name.endswith(".json") for name in list_names(target, UNFINISHED) if name.startswith("part-"))


def _clear(target: Place, names: list[str], manifest: Manifest | None) -> None:
    # Whenever it is killed, the next --overwrite finds a mark that this is its to clear, and no other command goes on.
    write_file(target, _COMMAND, json.dumps(_CLEARING).encode())
    _remove(target, [MANIFEST_NAME])  # before the shards: without it nothing takes what is left for a whole set
    old = {shard.name for shard in manifest.shards} if manifest is not None else set[str]()
    _remove(target, [name for name in names if name in old or _SHARD.fullmatch(name)])
    _remove(target, [f"{UNFINISHED}/{name}" for name in list_names(target, UNFINISHED) if name.startswith("part-")])


def _is_empty(target: Place, names: list[str]) -> bool:
    """Nothing there, or what is left of a conversion that was killed as it began."""
    left = list_names(target, UNFINISHED) if UNFINISHED in names else []
    return set(names) <= {UNFINISHED} and all(is_temporary(name, "command.json") for name in left)


def finished_parts(target: Place) -> Iterator[PartReport]:
    """Reports of the parts that are converted already: all their files are there in the sizes told."""
    reports = list_sizes(target, UNFINISHED)
    sizes = list_sizes(target) | {f"{UNFINISHED}/{name}": size for name, size in reports.items()}
    names = [name for name in sorted(reports) if re.fullmatch(r"part-\d{6,}\.json", name)]
    for i in range(0, len(names), _AT_ONCE):
        contents = read_files(target, [f"{UNFINISHED}/{name}" for name in names[i : i + _AT_ONCE]])
        for report in map(read_report, contents.values()):
            if report is not None and report.files().items() <= sizes.items():
                yield report


def finish(target: Place, manifest: Manifest) -> None:
    """Write the manifest, which makes the folder a set of records, and remove what it does not need."""
    held = {shard.name for shard in manifest.shards}
    left = [name for name in list_names(target) if _SHARD.fullmatch(name) or is_temporary(name, MANIFEST_NAME)]
    _remove(target, [name for name in left if name not in held])
    write_file(target, MANIFEST_NAME, manifest_to_json(manifest, where=target.child(MANIFEST_NAME)))
    _remove_unfinished(target)


def forget_part(target: Place, report: PartReport) -> None:
    """Remove a part that lies behind the limit."""
    _remove(target, [f"{UNFINISHED}/part-{report.number:06d}.json", f"{UNFINISHED}/part-{report.number:06d}.keys"])
    _remove(target, [shard.name for shard in report.shard_infos()])


def read_manifest_of(target: Place) -> Manifest:
    """The manifest of a folder anywhere.

    Raises:
        DataError: there is none, or it is not valid.
    """
    check_name(target)
    where = f"{target.url.rstrip('/')}/{MANIFEST_NAME}"
    if MANIFEST_NAME not in list_names(target):
        raise DataError(f"{where} does not exist: no record folder, or its conversion did not finish")
    return manifest_from_json(read_files(target, [MANIFEST_NAME])[MANIFEST_NAME], where=where)


@contextlib.contextmanager
def locked(target: Place) -> Generator[None]:
    """Keep a second conversion out of a local folder while this one lives, however it ends.

    Raises:
        DataError: another one is at work there.
    """
    if not target.is_local:
        yield
        return
    import fcntl

    folder = Path(target.path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise DataError(f"{target.url} is a file; give a folder") from error
    except OSError as error:
        raise DataError(f"{target.url} cannot be made: {error}") from error
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another conversion is writing to {target.url} at this moment; wait for it") from error
        for name in list_names(target, UNFINISHED):
            if name.startswith("tmp-"):  # of a run that was killed
                shutil.rmtree(folder / UNFINISHED / name)
        yield
    finally:
        os.close(handle)


def _read_command(target: Place) -> dict[str, object] | None:
    if "command.json" not in list_names(target, UNFINISHED):
        return None
    try:
        content: object = json.loads(read_files(target, [_COMMAND])[_COMMAND])
    except ValueError:  # empty, as after a power cut
        content = None
    return cast(dict[str, object], content) if isinstance(content, dict) else dict(_UNREADABLE)


def _differences(old: object, new: Mapping[str, object]) -> str:
    if not isinstance(old, dict):
        return "not written by this program"
    before = cast(dict[str, object], old)
    changed = [name for name in {**before, **new} if before.get(name) != new.get(name)]
    told = [f"{name} was {before.get(name)!r}, now {new.get(name)!r}" for name in changed if name != "source_files"]
    if "source_files" in changed:
        told.append("the source has changed")
    return "; ".join(told) or "by the same command"


def _remove(target: Place, names: list[str]) -> None:
    for name in names:
        if target.is_local:
            Path(target.child(name)).unlink(missing_ok=True)
        elif target.fs.exists(target.child(name)):
            target.fs.rm_file(target.child(name))


def _remove_unfinished(target: Place) -> None:
    if target.is_local:
        shutil.rmtree(target.child(UNFINISHED), ignore_errors=True)
    elif target.fs.exists(target.child(UNFINISHED)):
        target.fs.rm(target.child(UNFINISHED), recursive=True)
