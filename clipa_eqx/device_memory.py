"""Memory of devices: how much there is, whether a program fits, and one message where it does not."""

import contextlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from clipa_eqx.errors import ConfigError, is_out_of_memory

GIB = 2**30


class ProgramMemory(NamedTuple):
    """Bytes per device that a compiled program needs.

    Attributes:
        arguments: its inputs, and outputs that do not reuse their memory.
        temporary: what it computes in between, gaps between its parts included.
        peak: at the fullest moment, arguments included; 0 if not known. Compilers for TPUs compare it with the memory
            of a device, and refuse a program that has more.
    """

    arguments: int
    temporary: int
    peak: int = 0

    @property
    def total(self) -> int:
        """Bytes per device while the program runs."""
        return self.arguments + self.temporary

    @property
    def without_gaps(self) -> "ProgramMemory":
        """The same with only as much temporary memory as is in use at the peak, if that is known."""
        return self._replace(temporary=max(self.peak - self.arguments, 0)) if self.peak else self


def memory_of(compiled: Any) -> ProgramMemory | None:
    """The memory of a compiled program; None if the platform does not report it."""
    found: Any = compiled.memory_analysis()
    if found is None:
        return None
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    peak = getattr(found, "peak_memory_in_bytes", 0)
    return ProgramMemory(found.argument_size_in_bytes + max(outputs, 0), found.temp_size_in_bytes, peak)


def device_limit(device: Any) -> int | None:
    """Bytes that programs can use on a device; None if it is not known.

    CPU devices share the memory of the machine, or of the container if that is less.
    """
    if device.platform == "cpu":
        machine = machine_memory()
        return None if machine is None else machine // len(jax.local_devices(backend="cpu"))
    stats: Any = device.memory_stats()
    return stats.get("bytes_limit") if stats else None


def machine_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory of this machine, or of its control groups (versions 1 and 2) if they allow less.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    limits: list[int] = []
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemTotal:"):
            limits.append(int(line.split()[1]) * 1024)
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be that of the host, of which only the top is visible.
        for folder in (Path(path.lstrip("/")), *Path(path.lstrip("/")).parents):
            limits += [int(text) for text in _lines(base / folder / name) if text.isdigit()]
    return min(limits, default=None)


def check_fits(needed: ProgramMemory, available: int | None, *, what: str, advice: Sequence[str]) -> None:
    """Check that a program fits on its device.

    Args:
        needed: bytes per device.
        available: bytes of the device; None if not known, then nothing is checked.
        what: the program, as the message has it.
        advice: what the user can do, one line each.

    Raises:
        ConfigError: it cannot fit; the message has both numbers and the advice.
    """
    if available is None or needed.total <= available:
        return
    raise ConfigError(
        f"{what} needs {needed.total / GIB:.2f} GiB per device ({needed.arguments / GIB:.2f} GiB of arguments, "
        f"{needed.temporary / GIB:.2f} GiB temporary), a device has {available / GIB:.2f} GiB. {_joined(advice)}"
    )


@contextlib.contextmanager
def memory_errors(what: str, *, advice: Sequence[str]) -> Generator[None]:
    """Turn an error of JAX for exhausted memory into one message with advice.

    Raises:
        ConfigError: the memory did not suffice for the ``with`` block.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        first = (str(error).strip().splitlines() or ["the machine gives no number"])[0]
        raise ConfigError(f"memory ran out while {what} ({first}). {_joined(advice)}") from error


def _joined(advice: Sequence[str]) -> str:
    return "What helps:\n  " + "\n  ".join(advice)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except OSError:
        return []
