"""Writing of files in one step, local or remote: a file is there complete or not at all."""

import os
from pathlib import Path

from clipa_eqx.replacing import new_file
from conversion.records.places import Place


def write_file(place: Place, name: str, content: bytes) -> None:
    """Write a file of the folder ``place``, atomically also after a crash."""
    if not place.is_local:
        place.fs.pipe_file(place.child(name), content)
        return
    # The folder may hold thousands of files: the destination looks once for what killed processes left.
    with new_file(Path(place.child(name)), clean=False) as temporary:
        temporary.write_bytes(content)


def move_in(place: Place, finished: Path, name: str) -> None:
    """Move or upload a finished local file to its name in the folder ``place``."""
    if not place.is_local:
        place.fs.put_file(str(finished), place.child(name))
        finished.unlink()
        return
    with finished.open("rb") as file:
        os.fsync(file.fileno())  # otherwise a power cut may leave the new name without its content
    finished.replace(place.child(name))
