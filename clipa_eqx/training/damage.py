"""The decision whether a checkpoint is damaged: unreadable files, or leaves that differ from their checksums."""

import sys
from collections.abc import Callable, Mapping
from inspect import iscoroutine
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from clipa_eqx.buckets.bucket import BucketError
from clipa_eqx.checksums import leaf_checksums
from clipa_eqx.errors import CheckpointError, DamageError, is_out_of_memory

T = TypeVar("T")

# Causes of a failed read that are not in the files; the words are those of TensorStore and XLA.
_OTHER_CAUSES = ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED")
_SHOWN, _LONGEST = 5, 200
# Results of a read, from the best to the worst.
_READ, _DAMAGED, _UNREADABLE = range(3)


def read_intact(read: Callable[[], T], *, folder: Path) -> T:
    """The result of ``read``, which reads files of a checkpoint; with several processes, all fail if one does.

    Orbax and TensorStore raise errors of many kinds for damaged files, the bare ``Exception`` among them.

    Raises:
        CheckpointError: they may not be read, or not now; on every process, if that is so on one of them.
        DamageError: they are damaged.
        MemoryError: memory ran out.
    """
    show = sys.unraisablehook
    sys.unraisablehook = _WithoutLateReads(show)
    try:
        result = read()
        sys.unraisablehook = show
    except Exception as error:
        ours = _as_ours(error, folder)
        kind = _DAMAGED if isinstance(ours, DamageError) else _UNREADABLE
        if _worst(kind) > kind:
            raise _unreadable_elsewhere(folder) from error
        if ours is error:
            raise
        raise ours from error
    worst = _worst(_READ)
    if worst == _DAMAGED:
        raise DamageError("another process cannot read its files; see its message", folder=folder)
    if worst == _UNREADABLE:
        raise _unreadable_elsewhere(folder)
    return result


def check_checksums(leaves: Any, recorded: Mapping[str, str] | None, *, folder: Path) -> None:
    """Compare a tree with recorded checksums, by its leaf paths; without a record nothing is compared.

    Raises:
        DamageError: leaves differ from what was written; names them.
    """
    if recorded is None:
        return
    found = leaf_checksums(leaves)
    wrong = [path for path, one in found.items() if recorded.get(path) != one]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise DamageError(
            f"{', '.join(wrong[:_SHOWN])}{more} differ from the checksums that were recorded when it was saved",
            folder=folder,
        )


class _WithoutLateReads:
    """A hook that shows what ``show`` does, except for the other reads of a call of Orbax that gave up at one of them.

    They end at any time after the error, in a closed event loop or as discarded coroutines, and would print a traceback
    each.
    """

    def __init__(self, show: Callable[[Any], object]) -> None:
        self.show: Callable[[Any], object] = show.show if isinstance(show, _WithoutLateReads) else show

    def __call__(self, unraisable: Any) -> None:
        is_discarded = iscoroutine(unraisable.object) and "orbax" in unraisable.object.cr_code.co_filename
        if not is_discarded and str(unraisable.exc_value) != "Event loop is closed":
            self.show(unraisable)


def _worst(kind: int) -> int:
    """The worst result of a read over all processes."""
    if jax.process_count() == 1:
        return kind
    return int(np.max(multihost_utils.process_allgather(np.asarray(kind))))


def _unreadable_elsewhere(folder: Path) -> CheckpointError:
    return CheckpointError(f"checkpoint {folder} cannot be read by another process; see its message")


def _as_ours(problem: Exception, folder: Path) -> Exception:
    if isinstance(problem, CheckpointError):
        return problem
    # Orbax wraps what TensorStore says into an exception without it.
    cause: BaseException = problem
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if is_out_of_memory(cause):
        return problem if cause is problem else MemoryError(str(cause))
    reason = " ".join(f"{type(cause).__name__}: {cause}".split())
    reason = reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]} ..."
    if isinstance(cause, PermissionError | TimeoutError | BucketError) or any(
        word in str(cause) for word in _OTHER_CAUSES
    ):
        return CheckpointError(f"checkpoint {folder} cannot be read: {reason}")
    return DamageError(f"its files cannot be read ({reason})", folder=folder)
