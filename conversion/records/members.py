"""Members of a joined folder: the folders that a user names, and their addresses as the joined folder has them."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clipa_eqx.data.bucket_files import check_bucket
from clipa_eqx.errors import DataError
from conversion.records.braces import expand_braces
from conversion.records.places import Place, has_wildcards, is_pattern, open_place, protocols


def read_folder_list(file: Path) -> list[str]:
    """The folders in a UTF-8 file, one a line. Empty lines are left out.

    Raises:
        DataError: the file cannot be read, or names none.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--folders {file} cannot be read: {error}; give a text file, one folder a line") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise DataError(f"--folders {file} names no folders; give a text file, one folder a line")
    return found


def find_members(given: Iterable[str], *, target: Place) -> list[Place]:
    """The folders that a user names, in order; patterns in quotes name folders in the order of their names.

    A pattern never names ``target`` itself, so that the same command can join again. Files are left out.

    Raises:
        DataError: there is no such folder, or it is somewhere that records are not read from.
    """
    return [member for one in given for member in _find(one, target)]


def joinable(url: str) -> Place:
    """The place of a member or of a joined folder: a local path, absolute, or a ``gs://`` URL.

    Raises:
        DataError: records are not read from there.
    """
    place = open_place(url)
    if place.is_local:
        return place._replace(url=os.path.abspath(place.path))
    if {"gs", "gcs"} & set(protocols(place.fs)) and "::" not in url:
        return place._replace(url=f"gs://{place.path.strip('/')}")
    check_bucket(url)
    return place


def identity_of(member: Place) -> object:
    """A value that is equal for two spellings of one folder."""
    if not member.is_local:
        return member.url
    found = os.stat(member.path)
    return found.st_dev, found.st_ino


def address_in(target: Place, member: Place) -> str:
    """The address by which ``target`` names a member.

    It is relative if the member is inside ``target`` or inside the folder that contains it, on the same file system or
    in the same bucket, so that all can be moved or uploaded together. Otherwise it is the full path or URL.

    Raises:
        DataError: ``target`` is in a bucket and the member is not.
    """
    if target.is_local and member.is_local:
        return _local_address(target.path, member.path)
    if target.is_local:
        return member.url
    if member.is_local:
        raise DataError(
            f"{target.url} is in a bucket, and {member.url} is a folder of this machine, which no other machine would "
            "find; upload it, or join into a local folder"
        )
    parent = target.url.rpartition("/")[0]
    if member.url.startswith(f"{parent}/") and not parent.endswith("/"):
        return os.path.relpath(member.path, target.path)
    return member.url


def _local_address(target: str, member: str) -> str:
    real = os.path.realpath(target)
    parent = os.path.dirname(real)
    # Only the last name of the member may be a link: with a link above it, its place is elsewhere.
    place = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(member))), os.path.basename(member))
    if os.path.commonpath([parent, place]) != parent or os.stat(place).st_dev != os.stat(parent).st_dev:
        return os.path.abspath(member)
    return os.path.relpath(place, real)


def _find(given: str, target: Place) -> Iterator[Place]:
    place = open_place(given)
    if not is_pattern(place):
        yield _folder(given, given)
        return
    found = False
    for path in expand_braces(place.path):
        for folder in _matching(place, path) if has_wildcards(path) else [_url(place, path)]:
            member = _folder(folder, given)
            if member.url != target.url:
                found = True
                yield member
    if not found:
        raise DataError(f"{given} matches no folders; give record folders, or a pattern of their names in quotes")


def _folder(url: str, given: str) -> Place:
    place = joinable(url)
    if not place.fs.isdir(place.path):
        what = "is a file" if place.fs.exists(place.path) else "does not exist"
        meant = "" if url == given else f" ({given} means it)"
        raise DataError(f"{url}{meant} {what}; give record folders")
    return place


def _matching(place: Place, pattern: str) -> Sequence[str]:
    if place.is_local:
        return sorted(filter(os.path.isdir, glob.glob(pattern)))
    found: dict[str, Any] = place.fs.glob(pattern, detail=True)
    return [_url(place, path) for path, info in sorted(found.items()) if info["type"] == "directory"]


def _url(place: Place, path: str) -> str:
    return path if place.is_local else str(place.fs.unstrip_protocol(path))
