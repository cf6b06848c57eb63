"""A server that has imported everything and forks a training process per request, so that each starts 2 s sooner.

The processes are real ones: they get signals, die and leave files as any other. The server touches no device and starts
no thread, so that a fork is as safe as a new process.
"""

import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1


class Forked:
    """A process that a server started, with the methods of ``Popen`` that tests of kills use."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self.log = pid, log
        self.returncode: int | None = None
        self._ended = threading.Event()

    def end(self, code: int) -> None:
        self.returncode = code
        self._ended.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(str(self.log), timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:  # it has just ended
                self._ended.wait(10)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """Starts ``scripts/train.py`` in forks of one process. Use it in a ``with`` block, which kills what still runs.

    ``variables`` are for its environment; ``ALSO_IMPORTED`` names modules that the forks need, with spaces between.
    """

    def __init__(self, **variables: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT))), **variables}
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._started: list[Forked] = []
        self._pids: dict[int, Forked] = {}
        self._new = threading.Condition()
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def start(
        self, flags: Sequence[str], *, log: Path, settings: Mapping[str, Any] | None = None, **variables: str
    ) -> Forked:
        """Start training.

        Args:
            flags: the command line after the name of the program.
            log: file for what the process writes.
            settings: settings of JAX by name.
            variables: environment of this process, in addition to that of the server.
        """
        request = {"flags": list(flags), "log": str(log), "settings": dict(settings or {}), "variables": variables}
        assert self._server.stdin is not None
        with self._guard, self._new:
            before = len(self._started)
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            assert self._new.wait_for(lambda: len(self._started) > before, timeout=60), "the fork server has died"
            process = self._started[-1]
            process.log = log
            return process

    def _listen(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            said = json.loads(line)
            with self._new:
                if "code" in said:
                    self._pids.pop(said["pid"]).end(said["code"])
                else:
                    process = Forked(said["pid"], Path())
                    self._pids[process.pid] = process
                    self._started.append(process)
                self._new.notify_all()

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in list(self._pids.values()):
            process.kill()
            process.wait(60)
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)
        self._thread.join(60)
        assert self._server.stdout is not None
        self._server.stdout.close()


def cpu_server(cache: Path, **variables: str) -> ForkServer:
    """A server of training processes on CPUs; what one of them compiles, the next ones read from a folder."""
    return ForkServer(
        JAX_PLATFORMS="cpu",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        JAX_COMPILATION_CACHE_DIR=str(cache),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        **variables,
    )


def _serve() -> dict[str, Any] | None:
    """Fork a process per line of standard input and report its end; returns in each fork, and at the end of input."""
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    rest = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _report_ended()
        if 0 in ready:
            read = os.read(0, 65536)
            if not read:
                return None
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    os.close(woken)
                    os.close(wake)
                    return json.loads(line)
                _say({"pid": pid})


def _report_ended() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _say({"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def _say(message: Mapping[str, int]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _become(request: Mapping[str, Any]) -> int:
    """Be the process that a request describes."""
    import jax

    from clipa_eqx.programs.train import program

    if sys.platform == "linux":  # a killed test session takes its processes with it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, file in ((0, nothing), (1, log), (2, log)):
        os.dup2(file, number)
    os.environ.update(request["variables"])
    for name, value in request["settings"].items():
        jax.config.update(name, value)
    sys.argv = ["scripts/train.py", *request["flags"]]
    return program()


def main() -> int:
    # Everything a training process imports; none of it starts a device.
    from jax.experimental import multihost_utils, serialize_executable  # noqa: F401

    from clipa_eqx.programs import connection, train, training_run  # noqa: F401
    from support import phase_marks, tiny_runs  # noqa: F401

    for name in os.environ.get("ALSO_IMPORTED", "").split():
        importlib.import_module(name)
    request = _serve()
    return 0 if request is None else _become(request)


if __name__ == "__main__":
    sys.exit(main())
