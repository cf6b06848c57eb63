"""Agreement of the processes of a program: if one of them refuses, all of them end with a message."""

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from clipa_eqx.errors import ClipaError, ConfigError, listed

T = TypeVar("T")


@contextmanager
def refused_together(what: str = "start the run") -> Generator[None]:
    """End the ``with`` block with an error on every process if one of them raises a ClipaError in it.

    The processes may not communicate in the block: one that has left it would not answer.

    Args:
        what: the work of the block, for the message on the other processes.

    Raises:
        ClipaError: the error of this process.
        ConfigError: another process has one; the message names it.
    """
    problem: ClipaError | None = None
    try:
        yield
    except ClipaError as error:
        problem = error
    if jax.process_count() > 1:
        refused = np.atleast_1d(multihost_utils.process_allgather(np.asarray(problem is not None)))
        others = ", ".join(map(str, np.flatnonzero(refused)))
        if problem is None and others:
            raise ConfigError(f"process {others} cannot {what}; see its message for the reason")
    if problem is not None:
        raise problem


def taken_together(items: Iterable[T], *, what: str) -> Iterator[T]:
    """Yield items, as many on each process; if an item fails on one process, all of them end before they use theirs.

    Args:
        what: the work, for the message on the other processes.

    Raises:
        ClipaError: the error of this process.
        ConfigError: another process has one; the message names it.
    """
    if jax.process_count() == 1:
        yield from items
        return
    iterator, is_over = iter(items), False
    while not is_over:
        found: list[T] = []
        with refused_together(what):
            for item in iterator:
                found.append(item)
                break
        is_over = not found
        yield from found


def check_same_everywhere(text: str, *, what: str) -> None:
    """Check on all processes together that each of them passed the same text.

    Args:
        what: what the text describes, for the message.

    Raises:
        ConfigError: the texts differ; on every process.
    """
    if jax.process_count() > 1:
        digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32)
        digests = np.asarray(multihost_utils.process_allgather(digest))
        if len(np.unique(digests, axis=0)) > 1:
            raise ConfigError(
                f"the processes were given different {what}; start all of them with the same command on the same files "
                f"(this is process {jax.process_index()})"
            )


def check_same_entries(entries: Mapping[str, str | int | float | bool | None], *, what: str) -> None:
    """Check on all processes together that each of them passed the same entries.

    Args:
        entries: values by name; names may differ between the processes too.
        what: what the entries describe, for the message.

    Raises:
        ConfigError: they differ; on every process. Names the processes that differ from process 0, and each entry.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(entries, sort_keys=True).encode()
    digests = np.asarray(multihost_utils.process_allgather(np.frombuffer(hashlib.sha256(text).digest(), np.uint32)))
    if len(np.unique(digests, axis=0)) == 1:
        return
    first, *others = (json.loads(one) for one in _gathered(text))
    problems = [
        f"{name}: {other.get(name, 'absent')} on process {number}, {first.get(name, 'absent')} on process 0"
        for number, other in enumerate(others, start=1)
        for name in sorted({*first, *other})
        if first.get(name, "absent") != other.get(name, "absent")
    ]
    raise ConfigError(
        f"the processes were given different {what}; start all of them with the same command on the same files (this "
        f"is process {jax.process_index()}), {listed(problems)}"
    )


def _gathered(text: bytes) -> list[bytes]:
    """The texts of all processes, in their order; the processes call this together."""
    sizes = np.asarray(multihost_utils.process_allgather(np.asarray(len(text), np.int32)))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    found = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes() for row, size in zip(found, sizes, strict=True)]
