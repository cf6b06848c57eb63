"""Addresses of record folders and of their shards: local paths and URLs, also those that are relative to a folder."""

import os
import posixpath
import re
from pathlib import Path

from clipa_eqx.data.shards import ShardTable
from clipa_eqx.errors import DataError


def is_url(folder: str | Path) -> bool:
    """True if a folder is a URL, that is, in a bucket.

    Raises:
        DataError: a ``Path`` made of a URL, which has lost a slash.
    """
    text = str(folder)
    if re.match(r"[A-Za-z0-9+.-]+:/(?!/)", text):
        raise DataError(f"data folder {text} looks like a URL with one slash; give it as text, not as a Path")
    return "://" in text


def resolve(folder: str, address: str) -> str:
    """The full address of what a manifest in ``folder`` calls ``address``: a path relative to it, a path, or a URL.

    >>> resolve("gs://bucket/data/all", "../part-0"), resolve("data/all", "../part-0"), resolve("data", "gs://b/part-0")
    ('gs://bucket/data/part-0', 'data/part-0', 'gs://b/part-0')
    """
    if is_url(address) or os.path.isabs(address):
        return address
    if is_url(folder):
        scheme, _, path = folder.partition("://")
        return f"{scheme}://{posixpath.normpath(f'{path}/{address}')}"
    if ".." in address.split("/") and os.path.realpath(folder) != os.path.abspath(folder):
        folder = os.path.realpath(folder)  # the folder above a link is that of its target
    return os.path.normpath(os.path.join(folder, address))


class ShardAddresses:
    """Full addresses of the shards of one record folder, made on demand.

    Args:
        folder: path or URL of the record folder.
        shards: its shards.
    """

    def __init__(self, folder: str, shards: ShardTable) -> None:
        self._shards = shards
        self.folders: tuple[str, ...] = tuple(resolve(folder, one) if one else folder for one in shards.folders)
        """Full addresses of the folders of the shards, in the order of ``ShardTable.folders``."""

    def __getitem__(self, shard: int) -> str:
        folder, name = self._shards.file(shard)
        return f"{self.folders[folder]}/{name}"
