"""The flight record: the last steps of each process in memory, written to the run folder when something goes wrong."""

import json
import logging
import math
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from clipa_eqx.devices import in_words
from clipa_eqx.errors import NonFiniteError
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.replacing import write_text
from clipa_eqx.training.stopping import Interrupted

FLIGHT_NAME = "flight"
"""Folder of flight records and stacks in a run folder."""

_MOST_FILES = 8
"""Records of a process that are kept; the oldest is deleted first."""

_OF_FILE = ("process", "processes")

_log = logging.getLogger(__name__)


class _Entry(NamedTuple):
    sample_id: np.ndarray
    values: dict[str, Any] | None


class FlightRecord:
    """The last steps of this process. It costs two assignments per step until it is written.

    ``started`` and ``finished`` are called by the training thread, ``write`` also by the watchdog. Use it in a ``with``
    block: an error that ends the block is written as the reason.
    """

    def __init__(
        self,
        folder: Path,
        *,
        process: int,
        steps: int,
        facts: Mapping[str, Any],
    ) -> None:
        """Begin without steps.

        Args:
            folder: where records are written.
            process: number of this process.
            steps: number of the last steps that are kept; 0 for no record.
            facts: what is the same for all steps: seed, batch size, mesh, number of processes.
        """
        self._folder, self._process, self._facts = folder, process, dict(facts)
        self._steps: deque[int] = deque(maxlen=steps)
        self._entries: dict[int, _Entry] = {}

    def started(self, step: int, sample_id: np.ndarray) -> None:
        """Record that a step was started with these rows of this process."""
        if self._steps.maxlen:
            if len(self._steps) == self._steps.maxlen:
                self._entries.pop(self._steps[0], None)
            self._steps.append(step)
            self._entries[step] = _Entry(sample_id, None)

    def finished(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the numbers of a step that was started."""
        if (entry := self._entries.get(step)) is not None:
            self._entries[step] = entry._replace(values=dict(values))

    def write(self, reason: str) -> Path | None:
        """Write ``<last step>-<process>.jsonl``: the reason and the facts, then a line per step. None if it fails.

        No device is asked, because it may be what does not answer.
        """
        steps = list(self._steps)
        if not steps:
            return None
        path = self._folder / f"{steps[-1]:08d}-{self._process}.jsonl"
        lines: list[dict[str, Any]] = [{"reason": reason, "process": self._process, **self._facts}]
        for step in steps:
            entry = self._entries[step]
            values = entry.values
            lines.append(
                {
                    "step": step,
                    # The step's random numbers are those of fold_in(key(seed), step - 1).
                    "key": [self._facts.get("seed"), step - 1],
                    **({} if values is None else {**values, "bits": bits(values)}),
                    "is_finished": values is not None,
                    "sample_id": entry.sample_id.tolist(),
                }
            )
        try:
            self._folder.mkdir(exist_ok=True)
            write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
            self._remove_old()
        except OSError as error:  # the disk may be what went wrong
            _log.warning("%s cannot be written: %s", path, error)
            return None
        return path

    def _remove_old(self) -> None:
        mine = sorted(self._folder.glob(f"*-{self._process}.jsonl"))
        for old in mine[:-_MOST_FILES]:
            with suppress(OSError):
                old.unlink()

    def __enter__(self) -> "FlightRecord":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        first = (str(error).splitlines() or [""])[0]
        path = self.write(f"{type(error).__name__}: {first}")
        if path is not None and not isinstance(error, Interrupted | NonFiniteError):
            _log.info("the last steps are in %s", path)


def open_flight_record(config: ExperimentConfig, workdir: Path, mesh: Mesh) -> FlightRecord:
    """The flight record of this process of a run."""
    facts = {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "mesh": dict(mesh.shape),
        "devices": in_words(list(mesh.devices.flat)),
        "processes": jax.process_count(),
        "jax": jax.__version__,
    }
    return FlightRecord(workdir / FLIGHT_NAME, process=jax.process_index(), steps=config.flight_steps, facts=facts)


def bits(values: Mapping[str, Any]) -> dict[str, str]:
    """The float32 bits of each number that is not finite, in hexadecimal: NaNs of different origin differ there.

    >>> bits({"loss": float("inf"), "accuracy": 0.5})
    {'loss': '7f800000'}
    """
    return {
        name: f"{np.float32(value).view(np.uint32):08x}"
        for name, value in values.items()
        if isinstance(value, float) and not math.isfinite(value)
    }


def recorded_steps(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """The lines of all flight records in a folder by step, each from the newest file of its process. Damaged files are
    left out.
    """
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for path in sorted(folder.glob("*-*.jsonl")):
        try:
            head, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for line in lines:
                found[line["step"], head["process"]] = {**line, **{name: head[name] for name in _OF_FILE}}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    by_step: dict[int, list[dict[str, Any]]] = {}
    for (step, _), line in sorted(found.items(), key=lambda one: one[0]):
        by_step.setdefault(step, []).append(line)
    return by_step
