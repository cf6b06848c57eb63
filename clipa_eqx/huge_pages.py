"""Huge pages for the temporary arrays of training on a CPU.

XLA asks the allocator for all temporary memory of a step, and returns it at the end of the step. In pages of 4 KiB the
kernel hands out a gigabyte in 262,144 page faults, in each step again.
"""

import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
"""Environment variable with settings of glibc, which it reads when a process starts."""

_TRIED = "CLIPA_EQX_HUGE_PAGES"
"""Set by the start with huge pages, so that there is no third one if something takes ``GLIBC_TUNABLES`` away."""

_ACCELERATORS = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio")
_SETTING = "glibc.malloc.hugetlb=1"
_STATE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Start this program again, as the same process, with glibc's allocator asking for huge pages.

    Machines with a GPU or TPU are left alone: their temporary arrays are not in this memory.

    Call it first in a program that trains, before anything is read or written. It returns, and changes nothing, if
    ``variables_with_huge_pages`` has nothing to change.
    """
    state = _STATE.read_text() if _STATE.is_file() else ""
    variables = variables_with_huge_pages(os.environ, libc=platform.libc_ver()[0], state=state)
    if variables is not None and sys.executable and not any(Path(name).exists() for name in _ACCELERATORS):
        with suppress(OSError):  # this is no reason not to train
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], variables)


def variables_with_huge_pages(variables: Mapping[str, str], *, libc: str, state: str) -> dict[str, str] | None:
    """The environment that a program needs for huge pages; None if another start would change nothing.

    Args:
        variables: the present environment. With a ``GLIBC_TUNABLES`` of your own, or with a ``JAX_PLATFORMS`` that does
            not begin with ``cpu``, nothing is changed.
        libc: name of the C library, as ``platform.libc_ver`` gives it.
        state: text of ``/sys/kernel/mm/transparent_hugepage/enabled``. Under ``[always]`` all programs have huge pages,
            under ``[never]`` none.
    """
    is_cpu = variables.get("JAX_PLATFORMS", "cpu").split(",")[0] in ("", "cpu")
    if libc != "glibc" or "[madvise]" not in state or not is_cpu or not variables.keys().isdisjoint((TUNABLES, _TRIED)):
        return None
    return {**variables, TUNABLES: _SETTING, _TRIED: "1"}
