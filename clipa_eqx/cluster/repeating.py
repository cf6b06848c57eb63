"""Attempts at jobs of a cluster: which nodes and when a job that failed is tried again, and when no more."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from clipa_eqx.cluster.lasting import Lasting
from clipa_eqx.cluster.nodes import name_of
from clipa_eqx.errors import DataError, listed

WAITS = (1.0, 10.0)
"""Seconds before each further attempt at a job, in which storage may recover."""

_TRIES = len(WAITS) + 1

_log = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class Attempt:
    """An attempt at a job, which runs, waits for a processor, or is not due yet.

    Attributes:
        job: the job.
        name: its name in messages.
        reasons: why the attempts before failed, and where.
        failed_on: ids of the nodes where they did.
        due: the time from which it may start, by ``time.monotonic``.
        node: id of the node where it runs.
        units: what it has seen so far.
        process: the lasting process that runs it.
    """

    job: Any
    name: str
    reasons: list[str] = field(default_factory=list[str])
    failed_on: frozenset[str] = frozenset()
    due: float = 0.0
    node: str | None = None
    units: int = 0
    process: Lasting | None = None


def next_attempt(failed: Attempt, reason: str) -> Attempt:
    """The attempt after one that failed: later, and on another node if there is one.

    Raises:
        DataError: this was the last one.
    """
    where = "before it began" if failed.node is None else f"on {name_of(failed.node)}"
    reasons = [*failed.reasons, f"{where}: {reason}"]
    if len(reasons) >= _TRIES:
        raise DataError(
            f"{failed.name} failed {_TRIES} times; repeat the same command to resume once the reasons are gone: "
            f"{listed(reasons)}"
        )
    wait = WAITS[len(reasons) - 1]
    _log.warning(
        "%s failed %s; attempt %d of %d follows in %g s", failed.name, reasons[-1], len(reasons) + 1, _TRIES, wait
    )
    return Attempt(
        job=failed.job,
        name=failed.name,
        reasons=reasons,
        failed_on=failed.failed_on | ({failed.node} if failed.node is not None else set()),
        due=time.monotonic() + wait,
    )


def taken(waiting: list[Attempt], *, has_place: Callable[[Attempt], bool]) -> Iterator[Attempt]:
    """Take out one by one the attempts that are due and have a place; the others keep waiting."""
    while (one := next((one for one in waiting if one.due <= time.monotonic() and has_place(one)), None)) is not None:
        waiting.remove(one)
        yield one
