"""Event files for TensorBoard: the metric log of a run, as that program reads it. Needs the package tensorboardX."""

import importlib
import re
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clipa_eqx.errors import ConfigError, pip_install
from clipa_eqx.training.space import explained

FOLDER_NAME = "tensorboard"
"""Folder of the event files in a run folder."""

_NAME = re.compile(r"events\.out\.tfevents\.(\d{10})\..*\.clipa_eqx")


def check_tensorboard() -> None:
    """Check that event files can be written, before anything is computed.

    Raises:
        ConfigError: the package is not installed.
    """
    _module("tensorboardX")


class EventLog:
    """The event file of a run. Opening writes it from the lines of the metric log, and deletes former event files.

    Each step is therefore in it once, also after an interruption, and also if the option is new to a resumed run. A
    TensorBoard that has read the former file drops what it has of the run.

    Args:
        folder: made if it is not there.
        lines: the lines of ``metrics.jsonl`` so far.

    Raises:
        ConfigError: the package is not installed.
        CheckpointError: the folder cannot be written.
    """

    def __init__(self, folder: Path, lines: Iterable[Mapping[str, Any]]) -> None:
        protos: Any = _module("tensorboardX.proto.event_pb2")
        self._summary: Any = _module("tensorboardX.proto.summary_pb2").Summary
        self._event: Any = protos.Event
        self._folder = folder
        with explained(f"event files cannot be written to {folder}", folder.parent):
            folder.mkdir(parents=True, exist_ok=True)
            former = {path: int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}
            # TensorBoard reads files in the order of their names.
            seconds = max(int(time.time()), 1 + max(former.values(), default=0))
            name = f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.clipa_eqx"
            self._file: Any = _module("tensorboardX").RecordWriter(str(folder / name))
            self._add(0, time.time(), file_version="brain.Event:2")
            # The start of a session at a step makes TensorBoard drop what it has from that step on.
            self._add(0, time.time(), session_log=protos.SessionLog(status=protos.SessionLog.START))
            for line in lines:
                self._add_line(line)
            self._file.flush()
            for path in former:
                path.unlink()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append the numbers of a step. Lists, such as norms per block, are left out.

        Raises:
            CheckpointError: they cannot be written.
        """
        with explained(f"step {step} cannot be written to {self._folder}", self._folder):
            self._add_line({"step": step, **values})
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add_line(self, line: Mapping[str, Any]) -> None:
        numbers = {
            name: float(value)
            for name, value in line.items()
            if name not in ("step", "time") and isinstance(value, int | float)
        }
        values = [self._summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
        self._add(int(line["step"]), float(line.get("time", 0.0)), summary=self._summary(value=values))

    def _add(self, step: int, seconds: float, **content: Any) -> None:
        self._file.write(self._event(wall_time=seconds, step=step, **content).SerializeToString())


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            "tensorboard is set but tensorboardX is not installed; install it with "
            f"`{pip_install('tensorboardX')}`, or set --tensorboard False"
        ) from error
