"""Fences against late work: what a process does for the owner of a lock counts only while that owner has it.

A worker may outlive the owner that started it, for example on a machine that lost its connection. It carries a fence,
and compares it with the lock before it puts something into the folder.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clipa_eqx.buckets.bucket import Bucket
from clipa_eqx.locks.content import owner_of

PATIENCE_SECONDS = 3.0
"""Time for which another owner or stage is looked up again: a file system may show an older content for a moment."""

MISSING_SECONDS = 20.0
"""Time for which a lock may be missing, damaged, or in an earlier stage: one that a user deleted is made again by its
owner, and caches of a network file system show an older content for a while."""


class Fence(NamedTuple):
    """The state of a lock in which work was given out.

    Attributes:
        token: of the owner.
        stage: its number, which the owner counts up when what was given out before must not count any more.
    """

    token: str
    stage: int


class LateError(Exception):
    """Work was given out under a lock, or in a stage of it, that is over."""


def check_fence(where: Path | Bucket, fence: Fence, *, name: str) -> None:
    """Check that the lock of a folder is as it was when work was given out.

    Args:
        where: the locked folder.
        fence: the lock at that time.
        name: of the lock (see ``LockKind``).

    Raises:
        LateError: the lock has another owner, its owner is in another stage, or there is no lock.
        OSError, BucketError: it cannot be read.
    """
    since = time.monotonic()
    while (found := fence_in(owner_of(where, name) or {})) != fence:
        # Stages only grow, so that an earlier one of the same owner is certainly an older content.
        is_old = found is not None and found.token == fence.token and found.stage < fence.stage
        if time.monotonic() - since >= (MISSING_SECONDS if found is None or is_old else PATIENCE_SECONDS):
            raise LateError(f"work for {fence} came late: {name} in {where} has {found}")
        time.sleep(0.1)


def fence_in(owner: Mapping[str, Any]) -> Fence | None:
    """The fence of work for the owner of a lock; None if it is damaged, as while it is written."""
    try:
        return Fence(str(owner["token"]), int(owner["stage"]))
    except (KeyError, TypeError, ValueError):
        return None
