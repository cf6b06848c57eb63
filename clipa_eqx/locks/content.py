"""The content of locks, a record of the owner: a file of a folder, or the highest of numbered objects in a bucket."""

import json
from pathlib import Path
from typing import Any, NamedTuple, cast

from clipa_eqx.buckets.bucket import Bucket


class LockObject(NamedTuple):
    """The object that decides who has a lock in a bucket: its number and its owner, empty if its content is damaged."""

    number: int
    owner: dict[str, Any]


def owner_in(content: bytes) -> dict[str, Any]:
    """The owner that a lock names; empty if its content is damaged, as while it is written."""
    try:
        found: object = json.loads(content)
    except ValueError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) and "token" in found else {}


def owner_of(where: Path | Bucket, name: str) -> dict[str, Any] | None:
    """The owner of the lock of this name in a folder, as ``owner_in``; None if there is no lock.

    Raises:
        OSError, BucketError: it cannot be read.
    """
    if isinstance(where, Bucket):
        found = highest_object(where, name)
        return None if found is None else found.owner
    try:
        return owner_in((where / name).read_bytes())
    except FileNotFoundError:
        return None


def object_name(name: str, number: int) -> str:
    """The name of an object of a lock."""
    return f"{name}/{number:012d}"


def object_numbers(bucket: Bucket, name: str) -> list[int]:
    """Numbers of the objects of a lock, sorted. Raises BucketError."""
    numbers = (found.rpartition("/")[2] for found in bucket.names(name))
    return sorted(int(number) for number in numbers if number.isdecimal())


def highest_object(bucket: Bucket, name: str) -> LockObject | None:
    """The object that decides who has a lock; None if nobody has it. Raises BucketError."""
    while numbers := object_numbers(bucket, name):
        content = bucket.read(object_name(name, numbers[-1]))
        if content is not None:  # otherwise it was renewed or released meanwhile
            return LockObject(numbers[-1], owner_in(content))
    return None
