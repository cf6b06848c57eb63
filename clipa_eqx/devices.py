"""The devices of a program: the processes that share them, what they are, and what this machine has but does not use.

A failure is one ``ConfigError`` that says what was set and what the machine has.
"""

import contextlib
import functools
import importlib.metadata
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from clipa_eqx.errors import ConfigError, pip_install

CONNECT_SECONDS = 300
"""How long the processes of a run wait for each other by default."""

_CUDA, _TPU = "jax[cuda12]", "jax[tpu]"
"""Requirements that bring JAX for an accelerator."""

_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")
"""Packages through which JAX uses accelerators."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Coordinator:
    """The place of this process among the processes of a run, where JAX cannot find it by itself.

    Attributes:
        address: host and port of process 0, such as "10.0.0.1:1234"; the same on all processes.
        processes: number of processes.
        index: number of this process, from 0.

    Raises:
        ConfigError: an address without a port, no process, or an index that is not one of them.
    """

    address: str
    processes: int
    index: int

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise ConfigError(
                f"--coordinator-address is {self.address!r}; give host and port of process 0, such as 10.0.0.1:1234"
            )
        if self.processes < 1:
            raise ConfigError(f"--num-processes is {self.processes}; it must be at least 1")
        if not 0 <= self.index < self.processes:
            raise ConfigError(
                f"--process-index is {self.index}; with --num-processes {self.processes} give 0 to {self.processes - 1}"
            )


def coordinator(address: str | None, processes: int | None, index: int | None) -> Coordinator | None:
    """The coordinator that three flags name, or None if none of them is given.

    Raises:
        ConfigError: only some are given, or their values cannot be.
    """
    flags = {"--coordinator-address": address, "--num-processes": processes, "--process-index": index}
    missing = [flag for flag, value in flags.items() if value is None]
    if address is not None and processes is not None and index is not None:
        return Coordinator(address=address, processes=processes, index=index)
    if len(missing) < len(flags):
        given = [flag for flag in flags if flag not in missing]
        raise ConfigError(f"{' and '.join(given)} without {' and '.join(missing)}; give all three of them, or none")
    return None


def connect(
    place: Coordinator | None, *, seconds: int = CONNECT_SECONDS, give_up: Callable[[str], object] | None = None
) -> None:
    """Connect the processes of a run, before any device is used.

    Args:
        place: where the coordinator is; None lets JAX find it, on Cloud TPU, under Slurm, Open MPI and Kubernetes.
        seconds: how long the processes wait for each other.
        give_up: called with the message when that time is over, and must end the program: JAX would end it a few
            seconds later with a stack trace. By default the message is raised as an error, which may come too late.

    Raises:
        ConfigError: JAX finds no cluster, or the coordinator cannot be started.
    """
    where = "the coordinator that JAX found" if place is None else f"the coordinator {place.address}"
    known = {} if place is None else vars(place)
    late = (
        f"not all processes of the run reached {where} within {seconds} s. Check that every process was started"
        + (f" ({place.processes} are expected, this one has index {place.index})" if place else "")
        + ", that all have the same address, and that its port is open on the host of process 0"
    )
    timer = threading.Timer(seconds, give_up or (lambda _: None), args=(late,))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            known.get("address"),
            known.get("processes"),
            known.get("index"),
            # JAX aborts the process at its own limit: let ours come first.
            initialization_timeout=seconds + 30,
            cluster_detection_method=None if place is None else "deactivate",
        )
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        if place is None:
            raise ConfigError(
                f"--distributed: JAX found no cluster around this process ({_first_line(error)}). It knows Cloud TPU "
                "pods, Slurm, Open MPI and Kubernetes; elsewhere also give --coordinator-address HOST:PORT, "
                "--num-processes N and --process-index I"
            ) from error
        raise ConfigError(f"--distributed: {where} cannot be used ({_first_line(error)})") from error
    finally:
        timer.cancel()


@functools.cache
def open_devices() -> tuple[Any, ...]:
    """All devices of all processes; the first call starts JAX's backend, and warns if an accelerator is not used.

    Raises:
        ConfigError: the platform that ``JAX_PLATFORMS`` asks for cannot be used here. The message says why, and what
            this machine has.
    """
    with _caught_log("jax._src.xla_bridge") as said:
        try:
            devices = jax.devices()
        # An AssertionError if no platform is left, else a RuntimeError; plugins raise whatever they like.
        except Exception as error:
            raise ConfigError(_refusal(error)) from error
    if devices[0].platform == "cpu":
        missed = unused_accelerator(visible_accelerators(), installed_plugins(), asked=_asked())
        if missed:
            _log.warning("%s%s", missed, f" (JAX says: {said[0]})" if said else "")
    return tuple(devices)


def in_words(devices: Sequence[Any]) -> str:
    """Kind and number of devices, such as ``8 x NVIDIA H100``, ``1 x cpu`` or ``16 x TPU v5 lite on 2 hosts``."""
    kinds = Counter(str(device.device_kind) for device in devices)
    hosts = len({device.process_index for device in devices})
    words = " + ".join(f"{count} x {kind}" for kind, count in kinds.items())
    return f"{words} on {hosts} hosts" if hosts > 1 else words


@dataclass(frozen=True, kw_only=True)
class Accelerators:
    """Accelerators that the operating system shows.

    Attributes:
        nvidia: device files of NVIDIA GPUs.
        tpu: device files of TPU chips.
    """

    nvidia: tuple[str, ...] = ()
    tpu: tuple[str, ...] = ()


def visible_accelerators(root: Path = Path("/")) -> Accelerators:
    """Accelerators by their device files under ``root``, without any driver."""

    def found(folder: str, pattern: str) -> tuple[str, ...]:
        return tuple(sorted(str(path) for path in (root / folder).glob(pattern)))

    # Newer TPU machines have their chips in /dev/vfio. Other hardware may be there too, but no PCI device of Google.
    vendors = (root / "sys/bus/pci/devices").glob("*/vendor")
    is_google = any(_read(path) == "0x1ae0" for path in vendors)
    vfio = found("dev/vfio", "[0-9]*") if is_google else ()
    return Accelerators(nvidia=found("dev", "nvidia[0-9]*"), tpu=(*found("dev", "accel[0-9]*"), *vfio))


def installed_plugins() -> tuple[str, ...]:
    """Names and versions of the installed packages through which JAX uses accelerators."""
    found: list[str] = []
    for name in _PLUGINS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return tuple(found)


def unused_accelerator(visible: Accelerators, plugins: Sequence[str], *, asked: str | None) -> str | None:
    """The warning for a program that runs on the CPU of a machine with an accelerator; None if there is none to give.

    Args:
        visible: what the machine has.
        plugins: what is installed.
        asked: value of ``JAX_PLATFORMS``; if it has the CPU, there is no warning.
    """
    if asked and "cpu" in asked.split(","):
        return None
    for package, kind, files in ((_CUDA, "NVIDIA GPU", visible.nvidia), (_TPU, "TPU", visible.tpu)):
        if not files:
            continue
        sign = "cuda" if package == _CUDA else "libtpu"
        installed = [plugin for plugin in plugins if sign in plugin]
        advice = (
            f"{installed[0]} is installed, but JAX cannot use it: check the driver, and that no other process holds "
            "the device"
            if installed
            else f"install JAX for it with `{pip_install(package)}`"
        )
        return (
            f"this machine has {len(files)} x {kind} ({files[0]}), but the program runs on the CPU; {advice}. "
            "JAX_PLATFORMS=cpu turns this warning off"
        )
    return None


def _refusal(error: Exception) -> str:
    visible, plugins = visible_accelerators(), installed_plugins()
    files = (*visible.nvidia, *visible.tpu)
    asked = _asked()
    what = "JAX cannot use any device" if asked is None else f"JAX_PLATFORMS is {asked!r}, which JAX cannot use here"
    return (
        f"{what} ({_first_line(error)}). This machine shows "
        f"{', '.join(files) if files else 'no device file of an NVIDIA GPU or a TPU'}; installed for accelerators: "
        f"{', '.join(plugins) if plugins else 'nothing'}. Unset JAX_PLATFORMS to use what there is, set it to cpu, or "
        f"install JAX for the accelerator with `{pip_install(_CUDA)}` or `{pip_install(_TPU)}`"
    )


def _asked() -> str | None:
    """The platforms that JAX was asked for, by the environment or in Python."""
    asked: Any = getattr(jax.config, "jax_platforms", None)
    return asked or os.environ.get("JAX_PLATFORMS") or None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "JAX gives no reason"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


@contextlib.contextmanager
def _caught_log(name: str) -> Generator[list[str]]:
    """Collect the first lines of what a logger says, instead of printing them."""
    said: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage().splitlines()[0])

    logger, handler = logging.getLogger(name), Collect(level=logging.WARNING)
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
