"""Locks of conversions as other processes write them, and the files of folders of any kind."""

import json
from pathlib import Path

from clipa_eqx.buckets.bucket import bucket_at
from clipa_eqx.locks.owner import this_process
from conversion.records import convert as module
from conversion.records.locking import LOCK
from conversion.records.part import convert_part
from support import dumps
from support.dumps import samples

LOCK_NAME = LOCK.name


def with_repeated_key(folder):
    """Write three shards; the last repeats a key of the first, so it is converted twice. Returns the folder."""
    shards = [samples(3, first=3 * i) for i in range(3)]
    shards[2][1] = shards[0][1]
    dumps.write_tars(folder, shards)
    return folder


def files(target):
    """The bytes of all files of a folder, at any depth, without the lock."""
    bucket = None if target[0] == "/" else bucket_at(target)
    if bucket is not None:
        found = {name: bucket.read(name) for name in bucket.names()}
    else:
        paths = [path for path in Path(target).rglob("*") if path.is_file()]
        found = {str(path.relative_to(target)): path.read_bytes() for path in paths}
    return {name: data for name, data in found.items() if name.partition("/")[0] != LOCK_NAME}


def write_lock(target, number=0, **fields):
    """Write the lock of another process, in place of ours if there is one."""
    owner = {"token": "theirs", **this_process(), "pid": 7, "stage": 0, "number": number, **fields}
    if target[0] == "/":
        Path(target).mkdir(exist_ok=True)
        (Path(target) / LOCK_NAME).write_text(json.dumps(owner))
        return
    bucket = bucket_at(target)
    ours = list(bucket.names(LOCK_NAME))
    bucket.delete(ours)
    bucket.write(f"{LOCK_NAME}/{number + len(ours) * 1000:012d}", json.dumps(owner).encode())


def remove_lock(target):
    if target[0] == "/":
        (Path(target) / LOCK_NAME).unlink()
    else:
        bucket_at(target).delete(bucket_at(target).names(LOCK_NAME))


def during(monkeypatch, what, *, when=lambda job: job.number == 1):
    """Do something once, before the conversion of a part."""
    done = []

    def converting(job, seen):
        if when(job) and not done:
            done.append(job)
            what(job)
        return convert_part(job, seen)

    monkeypatch.setattr(module, "convert_part", converting)
    return done


def ignored(units):
    """Takes the place of a progress bar."""
