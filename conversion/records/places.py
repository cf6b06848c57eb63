"""Addresses of files and folders: local paths and fsspec URLs."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from clipa_eqx.buckets.bucket import driver_options
from clipa_eqx.errors import DataError
from conversion.records.braces import expand_braces, has_braces

_BUCKETS = {"gs": "gs", "gcs": "gs", "s3": "s3", "s3a": "s3"}


class Place(NamedTuple):
    """A folder or file in a filesystem.

    Attributes:
        url: what the user wrote.
        fs: fsspec's filesystem.
        path: the path inside ``fs``.
    """

    url: str
    fs: Any
    path: str

    @property
    def is_local(self) -> bool:
        """Check whether this is a local path."""
        return "file" in protocols(self.fs)

    @property
    def crosses_processes(self) -> bool:
        """Check whether another process that opens the same URL sees the same files."""
        return "memory" not in protocols(self.fs)

    def child(self, name: str) -> str:
        """The path of an entry of this folder."""
        return f"{self.path.rstrip('/')}/{name}"


def open_place(url: str | Path) -> Place:
    """Resolve a local path, or a URL such as ``gs://bucket/folder``.

    Raises:
        DataError: the text is empty, the protocol is unknown, or its driver is not installed.
    """
    from fsspec.core import url_to_fs

    text = os.fspath(url)
    if not text:
        raise DataError("a source or destination is empty; give . for the current folder")
    try:
        fs, path = url_to_fs(text, **_bucket_options(text))
    # Drivers raise errors of their own for missing archives, credentials and connections.
    except Exception as error:
        raise DataError(f"{text} cannot be opened: {error}") from error
    return Place(text, fs, str(path))


def _bucket_options(url: str) -> dict[str, Any]:
    scheme = _BUCKETS.get(url.partition("://")[0])
    return {} if scheme is None else driver_options(scheme)


def protocols(fs: Any) -> tuple[str, ...]:
    """All names that URLs of this filesystem may begin with."""
    protocol: str | tuple[str, ...] = fs.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def is_pattern(place: Place) -> bool:
    """Check whether the path is a pattern like ``data/*.tar`` or ``data/{0..9}.tar``, and no file has such a name."""
    return (has_wildcards(place.path) or has_braces(place.path)) and not place.fs.exists(place.path)


def has_wildcards(path: str) -> bool:
    """Check whether a path holds characters that mean others."""
    return re.search(r"[*?\[]", path) is not None


def root_of(place: Place) -> str:
    """The path of the folder that is searched: the folder itself, that of the file, or that before a pattern."""
    if is_pattern(place):
        special = r"[*?\[{]" if has_braces(place.path) else r"[*?\[]"
        return re.split(special, place.path)[0].rpartition("/")[0]
    return place.path.rpartition("/")[0] if place.fs.isfile(place.path) else place.path.rstrip("/")


def holds(outer: Place, inner: Place) -> bool:
    """Check whether ``inner`` is ``outer`` or is inside it, also through links."""
    if set(protocols(outer.fs)).isdisjoint(protocols(inner.fs)):
        return False
    above, below = (os.path.realpath(one.path) if one.is_local else one.path for one in (outer, inner))
    return f"{below.rstrip('/')}/".startswith(f"{above.rstrip('/')}/")


def check_apart(source: Place, target: Place) -> None:
    """Refuse a destination inside the source, which a resumed conversion would read as source, and the reverse.

    Raises:
        DataError: one is inside the other.
    """
    if source.fs.isfile(source.path):
        return
    root = root_of(source)
    pattern = source.path[len(root) :].lstrip("/")
    if is_pattern(source) and "/" not in pattern and "**" not in pattern:
        # `folder/*.tar` reads nothing from the folders inside, `folder/{a,b}` may name some.
        top = target.path[len(root) :].lstrip("/").partition("/")[0]
        if not has_braces(pattern) or top not in expand_braces(pattern):
            return
    searched = source._replace(path=root or "/")
    for outer, inner, what in ((searched, target, "the destination"), (target, searched, "the source")):
        if holds(outer, inner):
            raise DataError(f"{what} {inner.url} is inside {outer.url}; choose a destination next to the source")
