"""The manifest of a record folder in a bucket, read through fsspec; and which folders are in buckets."""

import importlib
import re
from pathlib import Path

from clipa_eqx.data.manifest import MANIFEST_NAME, Manifest, manifest_from_json
from clipa_eqx.errors import DataError, pip_install


def is_url(folder: str | Path) -> bool:
    """True if a folder is a URL, that is, in a bucket.

    Raises:
        DataError: a ``Path`` made of a URL, which has lost a slash.
    """
    text = str(folder)
    if re.match(r"[A-Za-z0-9+.-]+:/(?!/)", text):
        raise DataError(f"data folder {text} looks like a URL with one slash; give it as text, not as a Path")
    return "://" in text


def read_bucket_manifest(folder: str) -> Manifest:
    """Read the manifest of a ``gs://`` folder; this needs the package gcsfs.

    Raises:
        DataError: another kind of URL, a missing package, a manifest that cannot be read or is not valid.
    """
    where = f"{folder}/{MANIFEST_NAME}"
    if not folder.startswith("gs://"):
        raise DataError(
            f"data folder {folder}: records are read from local paths and gs:// only; copy it, or mount the bucket"
        )
    fsspec = importlib.import_module("fsspec")  # no type stubs
    try:
        with fsspec.open(where, "rb") as file:
            content: bytes = file.read()
    except ImportError as error:
        raise DataError(f"{where} cannot be read: {error}; {pip_install('gcsfs')}") from error
    # Drivers raise errors of their own for missing files, credentials and connections.
    except Exception as error:
        raise DataError(
            f"{where} cannot be read ({type(error).__name__}: {error}); give a folder of a finished conversion, and "
            "check the credentials with `gcloud auth application-default login`"
        ) from error
    return manifest_from_json(content, where=where)
