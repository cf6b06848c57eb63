"""Folders for intermediate files of a conversion. A killed conversion leaves its folder; the next start removes it."""

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Generator
from pathlib import Path

from conversion.records.listing import list_names
from conversion.records.part_report import UNFINISHED
from conversion.records.places import Place, open_place

_SHARED = "scratch-"


@contextlib.contextmanager
def local_folder(target: Place) -> Generator[Place]:
    """An empty folder on this machine, in that of temporary files, for processes of this machine."""
    where = os.path.realpath(target.path) if target.is_local else target.url
    prefix = f"clipa_eqx-keys-{hashlib.sha256(where.encode(errors='surrogateescape')).hexdigest()[:16]}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield open_place(folder)


@contextlib.contextmanager
def shared_folder(target: Place) -> Generator[Place]:
    """An empty folder in the unfinished destination, for the processes of all machines that see the destination.

    Its name is used once: a task of a killed conversion that is still running writes to another folder.
    """
    for name in list_names(target, UNFINISHED):
        if name.startswith(_SHARED):
            _remove(target, f"{UNFINISHED}/{name}")
    name = f"{UNFINISHED}/{_SHARED}{uuid.uuid4().hex}"
    if target.is_local:
        Path(target.child(name)).mkdir(parents=True)
    try:
        yield open_place(f"{target.url.rstrip('/')}/{name}")
    finally:
        _remove(target, name)


def _remove(target: Place, name: str) -> None:
    if target.is_local:
        shutil.rmtree(target.child(name), ignore_errors=True)
        return
    target.fs.invalidate_cache(target.child(UNFINISHED))  # other processes wrote the files
    if target.fs.exists(target.child(name)):
        target.fs.rm(target.child(name), recursive=True)
