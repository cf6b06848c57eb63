"""Failures of the processes of a run, which they report to each other through JAX's coordination service."""

import itertools
import json
import time
from typing import Any, NamedTuple

from jax._src import distributed

_RUNS = itertools.count()
"""Number of the next run of this process: all processes of a program start the same runs in the same order."""


_LAST_SECOND = 1.0


class Failure(NamedTuple):
    """The end of a process by a failure.

    Attributes:
        process: its number.
        message: what happened, in one line.
        code: its exit code.
    """

    process: int
    message: str
    code: int


class Peers:
    """The processes of a run. No method waits for another process to be at the same place, or for a device.

    With a single process nothing is reported.
    """

    def __init__(self) -> None:
        state: Any = distributed.global_state
        self._client: Any = state.client if (state.num_processes or 1) > 1 else None
        self.process: int = state.process_id if self._client is not None else 0
        self.count: int = state.num_processes if self._client is not None else 1
        self._folder = f"clipa_eqx/run-{next(_RUNS)}"

    def report(self, message: str, *, code: int) -> None:
        """Report the failure of this process; the first report counts."""
        lines = message.strip().splitlines()
        self._put("failed", json.dumps({"message": lines[0] if lines else "", "code": code}))

    def failure(self) -> Failure | None:
        """The failure of another process that was reported, if any. The lowest number counts."""
        others = [found for found in self._found("failed") if found[0] != self.process]
        if not others:
            return None
        process, text = min(others)
        return Failure(process, **json.loads(text))

    def wait_for_failure(self, *, seconds: float) -> Failure | None:
        """The failure of another process, if one is reported within some seconds."""
        until = time.monotonic() + seconds
        while (found := self.failure()) is None and self._client is not None and time.monotonic() < until:
            time.sleep(0.05)
        return found

    def ended(self) -> None:
        """Report that this process needs no other one any more."""
        self._put("ended", "")

    def wait_for_end(self, *, seconds: float) -> None:
        """Wait until all processes reported ``ended``, or some seconds.

        JAX kills a process without a message when process 0 ends, and collectives fail when any process ends.
        """
        until = time.monotonic() + seconds
        while self._client is not None and len(self._found("ended")) < self.count and time.monotonic() < until:
            time.sleep(0.05)
        if self._client is not None and self.process == 0:
            time.sleep(_LAST_SECOND)  # the others are ending in this moment

    def _put(self, kind: str, text: str) -> None:
        if self._client is None:
            return
        try:
            self._client.key_value_set(f"{self._folder}/{kind}/{self.process}", text)
        except Exception:  # of XLA, by many names: it is there already, or process 0 is gone
            return

    def _found(self, kind: str) -> list[tuple[int, str]]:
        if self._client is None:
            return []
        try:
            entries: list[tuple[str, str]] = self._client.key_value_dir_get(f"{self._folder}/{kind}")
        except Exception:  # none is there, or process 0 is gone, which JAX reports
            return []
        return [(int(key.rpartition("/")[2]), text) for key, text in entries]
