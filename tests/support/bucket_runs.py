"""Run folders in buckets, for tests: complete copies of them on this machine."""

import re
from pathlib import Path

from clipa_eqx.buckets.bucket import bucket_at


def downloaded(url: str, folder: Path) -> Path:
    """A copy of all objects of a folder in a bucket, as a program such as ``gsutil cp -r`` makes it."""
    bucket = bucket_at(url)
    assert bucket is not None
    for name, size in bucket.names().items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        bucket.download(name, file, size)
    return folder


def committed_in(url: str) -> list[int]:
    """The steps of a run in a bucket whose checkpoints have a record, in order."""
    bucket = bucket_at(url)
    assert bucket is not None
    found = (re.fullmatch(r"checkpoints/(\d+)/record/metadata", name) for name in bucket.names("checkpoints"))
    return sorted(int(one[1]) for one in found if one)
