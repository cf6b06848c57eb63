"""Conversions in this process: whole, and interrupted after some parts; tars of any members."""

import io
import tarfile

import pytest

from clipa_eqx.data.array_record_reader import open_records
from conversion.records import convert as module
from conversion.records.rows import IngestOptions


class Stopped(Exception):
    pass


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def keys(folder):
    return [record.key for record in open_records(folder)]


def captions(folder):
    return [text for record in open_records(folder) for text in record.captions]


def ingest(source, target, *, kind="webdataset", workers=1, overwrite=False, **options):
    return module.convert(
        kind, str(source), str(target), options=IngestOptions(**options), workers=workers, overwrite=overwrite
    )


def write_tar(path, members):
    """(name, content) or a `TarInfo` each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, value in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(value)
            tar.addfile(member, io.BytesIO(value))


def interrupted(monkeypatch, source, target, *, after, **options):
    """A conversion that ends without a word after some parts, in this process."""
    real = module.convert_part
    done = 0

    def stopping(job, seen):
        nonlocal done
        if done == after:
            raise Stopped
        done += 1
        return real(job, seen)

    with monkeypatch.context() as patch:
        patch.setattr(module, "convert_part", stopping)
        with pytest.raises(Stopped):
            ingest(source, target, **options)
