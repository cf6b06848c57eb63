"""Joined folders: many record folders that are opened as one, by a manifest that names theirs."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from clipa_eqx.data.addresses import resolve
from clipa_eqx.data.manifest import (
    JOINED_VERSION,
    MANIFEST_NAME,
    Manifest,
    Member,
    manifest_from_json,
    manifest_to_json,
)
from clipa_eqx.data.shards import joined_table
from clipa_eqx.data.verification import size_problem
from clipa_eqx.errors import DataError, counted, listed
from clipa_eqx.progress import progress_bar
from clipa_eqx.replacing import is_temporary
from conversion.records.joined_account import joined_account
from conversion.records.listing import list_names, list_sizes
from conversion.records.manifests import check_name, manifest_bytes, manifest_url, read_manifest_of
from conversion.records.members import address_in, find_members, identity_of, joinable
from conversion.records.part_report import UNFINISHED
from conversion.records.places import Place, holds
from conversion.records.reading import read_files
from conversion.records.stored_keys import RepeatedKeys, find_repeated_keys
from conversion.records.writing import write_file

Item = TypeVar("Item")
Result = TypeVar("Result")

KEYS_CHECKED = "keys_checked"
"""Entry of ``info``: no two records have the same key, which was checked when the folders were joined."""

_THREADS = 16  # a manifest takes a round trip on a network file system or to a bucket


class Joined(NamedTuple):
    """The result of a join.

    Attributes:
        manifest: that of the joined folder.
        is_written: whether it was written; False if keys are repeated, or the folder had this very manifest.
        repeated: repeated keys; None if they were not looked for.
    """

    manifest: Manifest
    is_written: bool
    repeated: RepeatedKeys | None


class _Leaf(NamedTuple):
    """A record folder with shards of its own, and its manifest."""

    place: Place
    manifest: Manifest
    sha256: str


def join(
    target: str,
    folders: Sequence[str],
    *,
    check_keys: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    examples: int = 10,
) -> Joined:
    """Write a manifest of manifests into the folder ``target``, by which all records of ``folders`` open as one folder.

    Names and sizes of all shards are compared with the manifests. Members of joined folders become members.

    Args:
        folders: paths, ``gs://`` URLs, and patterns of folders, in order.
        check_keys: look for keys that several records have, which reads all records; with any, nothing is written.
        overwrite: replace an earlier manifest of this kind.
        workers: processes that read records.
        examples: repeated keys to show.

    Raises:
        DataError: a folder is missing, unfinished, damaged, named twice, or has other class names than the rest; there
            are no records; or ``target`` holds something else.
    """
    place = joinable(target)
    check_name(place)
    given = find_members(folders, target=place)
    if not given:
        raise DataError("no folders to join; give their names, or a file of names with --folders")
    _check_outside(place, given)
    for member in given:
        address_in(place, member)  # refuses what cannot be named, before anything is read
    leaves = [leaf for found in _in_threads(_leaves, given, what="read manifests") for leaf in found]
    _check_outside(place, [leaf.place for leaf in leaves])
    _check_distinct(leaves)
    _check_class_names(leaves)
    manifest = _joined_manifest(place, leaves, are_keys_checked=check_keys)
    is_new, were_checked = _check_target(place, manifest, leaves, overwrite=overwrite)
    _check_shards(leaves)
    repeated = find_repeated_keys(place, manifest, workers=workers, examples=examples) if check_keys else None
    if repeated is not None and repeated.records:
        return Joined(manifest, is_written=False, repeated=repeated)
    if were_checked:
        manifest = replace(manifest, info={**manifest.info, KEYS_CHECKED: True})
    if is_new:
        if place.is_local:
            Path(place.path).mkdir(parents=True, exist_ok=True)
        write_file(place, MANIFEST_NAME, manifest_to_json(manifest, where=manifest_url(place)))
    return Joined(manifest, is_written=is_new, repeated=repeated)


def _leaves(member: Place) -> list[_Leaf]:
    """The folder itself, or the members of a joined folder."""
    manifest = read_manifest_of(member)
    if not manifest.members:
        text = manifest_bytes(member)
        return [_Leaf(member, manifest_from_json(text, where=manifest_url(member)), hashlib.sha256(text).hexdigest())]
    return [leaf for one in manifest.members for leaf in _leaves(joinable(resolve(member.url, one.folder)))]


def _joined_manifest(target: Place, leaves: Sequence[_Leaf], *, are_keys_checked: bool) -> Manifest:
    manifests = [leaf.manifest for leaf in leaves]
    dropped, info = joined_account(manifests)
    written = sum(manifest.rows_written for manifest in manifests)
    if not written:
        raise DataError(f"no records in {counted(len(leaves), 'folder')} to join; convert their sources again")
    members = tuple(
        Member(folder=address_in(target, leaf.place), rows=leaf.manifest.rows_written, sha256=leaf.sha256)
        for leaf in leaves
    )
    return Manifest(
        shards=joined_table([manifest.table for manifest in manifests], [member.folder for member in members]),
        rows_read=written + sum(dropped.values()),
        rows_written=written,
        rows_dropped=dropped,
        class_names=manifests[0].class_names,
        info={**info, **({KEYS_CHECKED: True} if are_keys_checked else {})},
        members=members,
    )


def _check_outside(target: Place, members: Sequence[Place]) -> None:
    for member in members:
        if holds(member, target):
            where = "is one of the folders to join" if holds(target, member) else f"is inside {member.url}"
            raise DataError(f"{target.url} {where}; choose another folder for the joined manifest")


def _check_distinct(leaves: Sequence[_Leaf]) -> None:
    """Refuse a folder that is named twice, in whatever spelling, and two folders with one content."""
    seen: dict[object, str] = {}
    for leaf in leaves:
        url, identity = leaf.place.url, identity_of(leaf.place)
        if identity in seen:
            other = "" if seen[identity] == url else f", also as {seen[identity]}"
            raise DataError(f"{url} is named twice{other}; name each folder once, for example without a joined one")
        if leaf.manifest.rows_written and leaf.sha256 in seen:
            raise DataError(
                f"{url} and {seen[leaf.sha256]} have equal manifests, and so the same records; leave one of them out"
            )
        seen[identity] = seen[leaf.sha256] = url


def _check_class_names(leaves: Sequence[_Leaf]) -> None:
    first = leaves[0]
    for leaf in leaves[1:]:
        ours, theirs = first.manifest.class_names, leaf.manifest.class_names
        if ours != theirs:
            if ours is None or theirs is None or len(ours) != len(theirs):
                shown = f"{len(theirs or ()):,} instead of {len(ours or ()):,}"
            else:
                label = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
                shown = f"label {label} is {theirs[label]!r} instead of {ours[label]!r}"
            raise DataError(
                f"{leaf.place.url} has other class names than {first.place.url}: {shown}. A label must mean the same "
                "in all folders; convert them with the same --class-names, or use several data.sources"
            )


def _check_target(target: Place, manifest: Manifest, leaves: Sequence[_Leaf], *, overwrite: bool) -> tuple[bool, bool]:
    """Check what is in the folder.

    Returns:
        Whether the manifest is to be written, and whether the folder has it already, with keys that were checked.
    """
    if target.fs.isfile(target.path):
        raise DataError(f"{target.url} is a file; give a folder")
    names = list_names(target)
    if UNFINISHED in names:
        raise DataError(f"{target.url} holds an unfinished conversion; choose another folder")
    if MANIFEST_NAME not in names:
        inside = {leaf.place.path.removeprefix(target.path).lstrip("/").partition("/")[0] for leaf in leaves}
        other = [name for name in names if name not in inside and not is_temporary(name, MANIFEST_NAME)]
        if other:
            raise DataError(f"{target.url} exists and holds other things, such as {other[0]}; choose another folder")
        return True, False
    old = _content(read_files(target, [MANIFEST_NAME])[MANIFEST_NAME])
    if old.get("version") != JOINED_VERSION:
        raise DataError(f"{target.url} holds records of its own; choose another folder")
    new = _content(manifest_to_json(manifest))
    was_checked, is_checked = (cast(dict[str, object], one["info"]).pop(KEYS_CHECKED, False) for one in (old, new))
    if old == new:
        return bool(is_checked and not was_checked), bool(was_checked)
    if not overwrite:
        before, now = (len(cast(list[object], one["members"])) for one in (old, new))
        raise DataError(
            f"{target.url} is a joined folder already, of {counted(before, 'record folder')}, now {now:,}, or with "
            "other manifests; choose another folder, or --overwrite"
        )
    return True, False


def _content(text: bytes) -> dict[str, object]:
    """The fields of a manifest, with maps and lists where those of a joined folder have them."""
    try:
        found: object = json.loads(text)
    except ValueError:
        found = None
    fields = dict(cast(dict[str, object], found)) if isinstance(found, dict) else {}
    for name, kind in (("info", dict), ("members", list)):
        if not isinstance(fields.get(name), kind):
            fields[name] = kind()
    return fields


def _check_shards(leaves: Sequence[_Leaf]) -> None:
    """Compare names and sizes of all shards with the manifests; all that differ are in the message."""
    problems = [problem for found in _in_threads(_damage, leaves, what="compare sizes of shards") for problem in found]
    if problems:
        raise DataError(f"shards are damaged; restore them, or convert their sources again, {listed(problems)}")


def _damage(leaf: _Leaf) -> list[str]:
    sizes = list_sizes(leaf.place)
    found = ((shard.name, size_problem(shard, sizes.get(shard.name))) for shard in leaf.manifest.shards)
    return [f"{leaf.place.url}/{name} {problem}" for name, problem in found if problem is not None]


def _in_threads(work: Callable[[Item], Result], items: Sequence[Item], *, what: str) -> Iterator[Result]:
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        progress_bar(what=what, total=len(items), unit="folder") as bar,
    ):
        for result in pool.map(work, items):
            yield result
            bar.update()
