"""Small files of record folders in buckets, read through fsspec."""

import importlib

from clipa_eqx.errors import DataError, pip_install


def check_bucket(folder: str) -> None:
    """Raise DataError for a URL of a kind that array_record cannot read."""
    if not folder.startswith("gs://"):
        raise DataError(
            f"data folder {folder}: records are read from local paths and gs:// only; copy it, or mount the bucket"
        )


def read_bucket_file(url: str) -> bytes:
    """The content of a ``gs://`` file; this needs the package gcsfs.

    Raises:
        DataError: a missing package, or a file that cannot be read.
    """
    fsspec = importlib.import_module("fsspec")  # no type stubs
    try:
        with fsspec.open(url, "rb") as file:
            content: bytes = file.read()
    except ImportError as error:
        raise DataError(f"{url} cannot be read: {error}; {pip_install('gcsfs')}") from error
    # Drivers raise errors of their own for missing files, credentials and connections.
    except Exception as error:
        raise DataError(
            f"{url} cannot be read ({type(error).__name__}: {error}); give a folder of a finished conversion, and "
            "check the credentials with `gcloud auth application-default login`"
        ) from error
    return content
