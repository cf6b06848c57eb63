"""The destination of a conversion: start, resume, refuse, finish."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from clipa_eqx.data.manifest import MANIFEST_NAME, Manifest, manifest_to_json
from clipa_eqx.data.verification import size_problem
from clipa_eqx.errors import DataError
from clipa_eqx.progress import progress_bar, waiting
from clipa_eqx.replacing import is_temporary
from conversion.records.command import Command, differences
from conversion.records.listing import list_names, list_sizes
from conversion.records.locking import STAGED, is_lock
from conversion.records.manifests import read_manifest_of
from conversion.records.part_report import (
    SUBSET,
    UNFINISHED,
    PartReport,
    keys_name,
    met_name,
    report_from_json,
    report_name,
)
from conversion.records.places import Place
from conversion.records.reading import read_files
from conversion.records.writing import write_file

PROBE = "probe-"
"""How the names of folders in ``_unfinished`` begin with which nodes show that they see the destination."""

_COMMAND = f"{UNFINISHED}/command.json"
_OVERWRITING = "overwriting"  # key in a recorded command that started by overwriting
_CLEARING = {"kind": "being overwritten"}  # recorded while old records are removed
_AT_ONCE = 512  # reports fetched together
_SHARD = re.compile(r"shard-\d{6,}-\d{3,}\.array_record")


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """The record in ``_unfinished`` of a conversion that did not finish.

    Attributes:
        command: the command that started it; None if it cannot be read, as after a power cut.
        is_overwriting: whether it started by overwriting.
        is_clearing: whether it was killed while it removed old records.
    """

    command: Command | None
    is_overwriting: bool = False
    is_clearing: bool = False


def finished_before(target: Place, command: Command) -> Manifest | None:
    """The manifest if ``command`` has finished in the folder and left nothing else; then no lock is needed.

    The folder is only read.

    Raises:
        DataError: another command has finished there, or a shard is missing.
    """
    if not target.fs.exists(target.child(MANIFEST_NAME)):
        return None
    names = list_names(target)
    if UNFINISHED in names or any(map(is_lock, names)):  # perhaps a conversion is working there
        return None
    manifest = read_manifest_of(target)
    if manifest.members or not manifest.rows_written:
        return None
    _check_finished(target, manifest, _recorded(command))
    return manifest


def begin(target: Place, command: Command, *, overwrite: bool, check: Callable[[], None]) -> Manifest | None:
    """Make the folder ready for ``command``; return the manifest if this very command has finished there before.

    A finished conversion that kept no record starts again, because what was missing may exist now. With ``overwrite``
    the conversion starts again, unless the same command was interrupted after it had started to overwrite.

    Args:
        check: called once the conversion is to start or resume, before anything else is removed or written; it may
            raise.

    Raises:
        DataError: the folder holds something else, another command has started or finished there, or a shard of a
            finished conversion is missing.
    """
    names = [name for name in list_names(target) if not is_lock(name)]
    wanted = _recorded(command)
    manifest = read_manifest_of(target) if MANIFEST_NAME in names else None
    if manifest is not None and manifest.members:
        raise DataError(f"{target.url} is a joined folder, which names other folders; choose another folder")
    begun = _read_begun(target) if UNFINISHED in names else None
    if manifest is not None and not overwrite and manifest.rows_written:
        _check_finished(target, manifest, wanted)
        _remove_unfinished(target)  # a kill between the last two steps leaves it
        return manifest
    if manifest is None and begun is not None:
        is_same = not begun.is_clearing and begun.command == wanted
        if is_same and (begun.is_overwriting or not overwrite):
            check()
            return None
        if not overwrite and (begun.is_clearing or _has_parts(target)):
            raise DataError(
                f"{target.url} holds an unfinished conversion by another command ({_describe(begun, wanted)}); "
                "repeat that command to resume it, choose another folder, or --overwrite"
            )
    if manifest is None and begun is None and not _is_empty(target, names):
        raise DataError(f"{target.url} exists and holds other things than records; choose another folder")
    check()
    if manifest is not None or begun is not None:
        _clear(target, names, manifest)
    write_file(target, _COMMAND, json.dumps({**command, **({_OVERWRITING: True} if overwrite else {})}).encode())
    return None


def _check_finished(target: Place, manifest: Manifest, wanted: Command) -> None:
    finished = manifest.info.get("command")
    if finished != wanted:
        known = cast(Command, finished) if isinstance(finished, dict) else None
        raise DataError(
            f"{target.url} holds records already ({differences(known, wanted)}); choose another folder, or --overwrite"
        )
    sizes = list_sizes(target)
    for shard in manifest.shards:
        if (problem := size_problem(shard, sizes.get(shard.name))) is not None:
            raise DataError(
                f"{target.url}: {shard.name} {problem}; restore it, or convert the source again with --overwrite"
            )


def _recorded(command: Command) -> Command:
    """A command as files have it."""
    return cast(Command, json.loads(json.dumps(command)))


def _describe(begun: _Begun, wanted: Command) -> str:
    if begun.is_clearing:
        return "it was overwriting older records"
    return "its command cannot be read" if begun.command is None else differences(begun.command, wanted)


def _has_parts(target: Place) -> bool:
    return any(name.endswith(".json") for name in list_names(target, UNFINISHED) if name.startswith("part-"))


def _clear(target: Place, names: list[str], manifest: Manifest | None) -> None:
    # Whenever this is killed, the next --overwrite finds a mark that it may clear, and no other command resumes.
    write_file(target, _COMMAND, json.dumps(_CLEARING).encode())
    _remove(target, [MANIFEST_NAME])  # before the shards: without it nothing takes the rest for a complete folder
    old = {shard.name for shard in manifest.shards} if manifest is not None else set[str]()
    _remove(target, [name for name in names if name in old or _SHARD.fullmatch(name)])
    made = [name for name in list_names(target, UNFINISHED) if name.startswith(("part-", SUBSET))]
    _remove(target, [f"{UNFINISHED}/{name}" for name in made])


def _is_empty(target: Place, names: list[str]) -> bool:
    """Check whether the folder is empty, except for leftovers of a conversion that was killed as it started."""
    left = list_names(target, UNFINISHED) if UNFINISHED in names else []
    temporary = (name.startswith((PROBE, STAGED)) or is_temporary(name, "command.json") for name in left)
    return set(names) <= {UNFINISHED} and all(temporary)


def finished_parts(target: Place) -> Iterator[PartReport]:
    """Reports of the parts that are converted already: all their files exist in the reported sizes."""
    reports = list_sizes(target, UNFINISHED)
    sizes = list_sizes(target) | {f"{UNFINISHED}/{name}": size for name, size in reports.items()}
    names = [name for name in sorted(reports) if re.fullmatch(r"part-\d{6,}\.json", name)]
    with progress_bar(what="read reports", total=len(names), unit="part") as bar:
        for i in range(0, len(names), _AT_ONCE):
            contents = read_files(target, [f"{UNFINISHED}/{name}" for name in names[i : i + _AT_ONCE]])
            for report in map(report_from_json, contents.values()):
                if report is not None and report.files().items() <= sizes.items():
                    yield report
            bar.update(len(contents))


def forget_part(target: Place, report: PartReport) -> None:
    """Remove a part that is beyond the limit."""
    _remove(target, [name(report.number) for name in (report_name, keys_name, met_name)])
    _remove(target, [shard.name for shard in report.shard_infos()])


def finish(target: Place, manifest: Manifest) -> None:
    """Write the manifest, which makes the folder a record folder, and remove what it does not need.

    Raises:
        DataError: a shard is not there any more, or has another size than its report says.
    """
    with waiting("comparing the sizes of all shards"):
        sizes = list_sizes(target)
    for shard in manifest.shards:
        if (problem := size_problem(shard, sizes.get(shard.name))) is not None:
            raise DataError(
                f"{target.url}: {shard.name} {problem}: something else wrote to this folder meanwhile; end that, and "
                "repeat the same command, which converts this part again"
            )
    held = {shard.name for shard in manifest.shards}
    left = [name for name in sizes if _SHARD.fullmatch(name) or is_temporary(name, MANIFEST_NAME)]
    _remove(target, [name for name in left if name not in held])
    write_file(target, MANIFEST_NAME, manifest_to_json(manifest, where=target.child(MANIFEST_NAME)))
    _remove_unfinished(target)


def _read_begun(target: Place) -> _Begun | None:
    if "command.json" not in list_names(target, UNFINISHED):
        return None
    try:
        content: object = json.loads(read_files(target, [_COMMAND])[_COMMAND])
    except ValueError:  # empty, as after a power cut
        content = None
    if not isinstance(content, dict):
        return _Begun(command=None)
    command = dict(cast(Command, content))
    is_overwriting = bool(command.pop(_OVERWRITING, False))
    return _Begun(command=command, is_overwriting=is_overwriting, is_clearing=command == _CLEARING)


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
