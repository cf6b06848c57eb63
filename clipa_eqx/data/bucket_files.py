"""Small files of record folders in buckets."""

from clipa_eqx.buckets.bucket import bucket_at
from clipa_eqx.errors import ClipaError, DataError


def check_bucket(folder: str) -> None:
    """Raise DataError for a URL of a kind that records are not read from."""
    if not folder.startswith("gs://"):
        raise DataError(
            f"data folder {folder}: records are read from local paths and gs:// only; copy it, or mount the bucket"
        )


def read_bucket_file(folder: str, name: str) -> bytes | None:
    """The content of a file in a ``gs://`` folder, None if there is none; this needs the package gcsfs.

    Raises:
        DataError: it cannot be read.
    """
    bucket = bucket_at(folder)
    if bucket is None:
        raise DataError(f"data folder {folder} names no bucket; give gs://BUCKET/FOLDER")
    try:
        return bucket.read(name)
    except ClipaError as error:  # of a package, of credentials, of a bucket that does not answer
        raise DataError(str(error)) from error
