"""Manifests of record folders anywhere, local or remote."""

from clipa_eqx.data.manifest import MANIFEST_NAME, Manifest, manifest_from_json
from clipa_eqx.errors import DataError
from conversion.records.listing import list_names
from conversion.records.places import Place
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
    """The manifest of a record folder.

    Raises:
        DataError: there is none, or it is not valid.
    """
    check_name(folder)
    where = f"{folder.url.rstrip('/')}/{MANIFEST_NAME}"
    if MANIFEST_NAME not in list_names(folder):
        raise DataError(f"{where} does not exist: this is not a record folder, or its conversion did not finish")
    return manifest_from_json(read_files(folder, [MANIFEST_NAME])[MANIFEST_NAME], where=where)
