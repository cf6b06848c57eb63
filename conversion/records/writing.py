"""Writing of files in one step, local or remote: a file is there complete or not at all."""

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
