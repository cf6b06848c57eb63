"""Manifests of record folders anywhere, local or remote."""

from clipa_eqx.data.addresses import resolve
from clipa_eqx.data.manifest import MANIFEST_NAME, Manifest, manifest_from_json
from clipa_eqx.errors import DataError
from conversion.records.listing import list_names
from conversion.records.places import Place, open_place
from conversion.records.reading import read_files
from conversion.records.rows import printable


def check_name(folder: Place) -> None:
    """Check that shards can be opened in a folder of this name: array_record accepts only Unicode.

    Raises:
        DataError: the name is not UTF-8.
    """
    if printable(folder.path) != folder.path:
        raise DataError(f"{printable(folder.path)} has a name that is not UTF-8; choose another for the records")


def read_manifest_of(folder: Place) -> Manifest:
    """The manifest of a record folder, which may be a joined one.

    Raises:
        DataError: there is none, it is not valid, or a member is missing or was changed.
    """
    return manifest_from_json(
        manifest_bytes(folder),
        where=manifest_url(folder),
        read_member=lambda member: manifest_bytes(open_place(resolve(folder.url.rstrip("/"), member))),
    )


def manifest_url(folder: Place) -> str:
    """The address of the manifest in a folder."""
    return f"{folder.url.rstrip('/')}/{MANIFEST_NAME}"


def manifest_bytes(folder: Place) -> bytes:
    """The content of the manifest of a record folder.

    Raises:
        DataError: there is none.
    """
    check_name(folder)
    if MANIFEST_NAME not in list_names(folder):
        where = manifest_url(folder)
        raise DataError(f"{where} does not exist: this is not a record folder, or its conversion did not finish")
    return read_files(folder, [MANIFEST_NAME])[MANIFEST_NAME]
