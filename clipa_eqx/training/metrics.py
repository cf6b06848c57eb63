"""The metrics of a run: one JSON line per logged step, each step exactly once, also after interruptions."""

import json
import logging
import math
import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipa_eqx.errors import CheckpointError
from clipa_eqx.replacing import write_text
from clipa_eqx.training.space import explained

_log = logging.getLogger(__name__)


class MetricLog:
    """``metrics.jsonl``. Opening it at a step drops the lines that an interrupted run wrote after that step."""

    def __init__(self, path: Path, *, step: int, last: int | None = None) -> None:
        """Open the file to append lines after ``step``; warn if it ends before step ``last``, the last one logged."""
        self.path = path
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        end = json.loads(kept[-1])["step"] if kept else 0
        if last is not None and end < last:
            _log.warning(
                "%s ends at step %d, but lines up to step %d were written before checkpoint %d: the lines between are "
                "lost; the run itself is not affected",
                *(path, end, last, step),
            )
        with explained(f"{path} cannot be written", path.parent):
            write_text(path, "".join(kept))
            self._file = path.open("ab", buffering=0)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line and wait until it is on disk.

        Raises:
            CheckpointError: it cannot be written; no part of it is.
        """
        line = (json.dumps({"step": step, **values}, allow_nan=True) + "\n").encode()
        with explained(f"step {step} cannot be written to {self.path}", self.path.parent, needed=len(line)):
            before = os.fstat(self._file.fileno()).st_size
            try:
                written = 0
                while written < len(line):  # a full disk takes a part of it first
                    written += self._file.write(line[written:])
                os.fsync(self._file.fileno())
            except OSError:
                os.ftruncate(self._file.fileno(), before)
                raise

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a ``metrics.jsonl``."""
    return [json.loads(line) for line in _lines(path)]


def to_host(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as plain numbers and lists; waits for the step that computes them on the devices."""
    values = {name: np.asarray(value, np.float64) for name, value in jax.device_get(dict(metrics)).items()}
    return {name: value.tolist() for name, value in values.items()}


def is_finite(values: Mapping[str, Any]) -> bool:
    """True if loss, gradient and update are finite; then the parameters are finite too."""
    return all(math.isfinite(values[name]) for name in ("loss", "grad_norm", "update_norm"))


class Throughput:
    """Rates between two logged steps, by the clock of this process: they differ from run to run."""

    def __init__(self, *, batch_size: int, devices: int, step: int = 0) -> None:
        """Start the clock after step ``step``, on so many devices over all processes."""
        self._batch_size, self._devices = batch_size, devices
        self._since, self._step, self._starved, self._waited = time.perf_counter(), step, 0.0, 0.0

    def starved(self, seconds: float) -> None:
        """Add the longest time that the devices may have waited for a batch."""
        self._starved += seconds

    def waited(self, seconds: float) -> None:
        """Add time in which this process waited for a batch or for the devices."""
        self._waited += seconds

    def wait_for(self, running: Any) -> None:
        """Wait until the devices have computed arrays; that is no work of this process."""
        since = time.perf_counter()
        jax.block_until_ready(running)
        self.waited(time.perf_counter() - since)

    @contextmanager
    def paused(self, running: Any) -> Generator[None]:
        """Wait for ``running``, then exclude the time in the ``with`` block from the rates."""
        self.wait_for(running)
        since = time.perf_counter()
        yield
        self._since += time.perf_counter() - since

    def rates(self, step: int) -> dict[str, float]:
        """Rates since the last call: images/s, images/s/device, seconds per step, percent of time waiting for input.

        ``host_seconds_per_step`` is the time of this process except for waiting: starting the step, sending the batch
        to the devices, reading and writing numbers. If it is shorter than the step, it delays nothing.

        Args:
            step: the last step that the devices have finished. Those that were only started do not count.
        """
        now = time.perf_counter()
        elapsed, steps = max(now - self._since, 1e-9), step - self._step
        images = steps * self._batch_size / elapsed
        rates = {
            "images_per_second": images,
            "images_per_second_per_device": images / self._devices,
            "seconds_per_step": elapsed / max(steps, 1),
            "input_bound_percent": 100.0 * min(self._starved / elapsed, 1.0),
            "host_seconds_per_step": max(elapsed - self._waited, 0.0) / max(steps, 1),
        }
        self._since, self._step, self._starved, self._waited = now, step, 0.0, 0.0
        return rates


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    # Damaged bytes make a line that is no JSON, which is reported below.
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    # A killed process may leave half a line at the end; anywhere else that is damage.
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} line {number} is damaged; delete that line to resume") from error
    return lines
