"""Conversions in this process, complete or interrupted, by the function or by the command; and what they wrote."""

import io
import tarfile

import pytest

from clipa_eqx.cli import run
from clipa_eqx.data.array_record_reader import open_records
from conversion.records import convert as module
from conversion.records.__main__ import main
from conversion.records.options import IngestOptions


class Stopped(Exception):
    """Simulates a kill."""


def ingest(source, target, *, kind="webdataset", workers=1, overwrite=False, **options):
    """Convert and return the manifest."""
    return module.convert(
        kind, str(source), str(target), options=IngestOptions(**options), workers=workers, overwrite=overwrite
    )


def ingest_folder(kind, folder, **options):
    """Convert ``folder/source`` into ``folder/out``; return the manifest and the records."""
    manifest = ingest(folder / "source", folder / "out", kind=kind, **options)
    return manifest, list(open_records(folder / "out"))


def interrupted(monkeypatch, source, target, *, after, **options):
    """Convert in this process and stop without any cleaning after some parts."""
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


def call(*arguments, workers=1):
    """Exit code of the command ``python -m conversion.records``."""
    extra = [] if "--workers" in arguments else ["--workers", str(workers)]
    return run(lambda: main([*map(str, arguments), *extra]))


def error_of(capsys):
    """The only error message of a command."""
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return message


def content(folder):
    """The bytes of all files by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def keys(folder):
    """The keys of all records in order."""
    return [record.key for record in open_records(folder)]


def captions(folder):
    """The captions of all records in order."""
    return [text for record in open_records(folder) for text in record.captions]


def write_tar(path, members):
    """Write a tar of ``(name, content)`` or ``(TarInfo, content)`` members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, value in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(value)
            tar.addfile(member, io.BytesIO(value))
