"""Connection of a program to the other processes of its run, before any device is touched."""

import os
from collections.abc import Callable
from typing import NoReturn

import jax

from clipa_eqx.agreement import refused_together
from clipa_eqx.cli import USAGE, print_error, set_up_logging
from clipa_eqx.devices import CONNECT_SECONDS, connect, coordinator, open_devices
from clipa_eqx.programs.distributed import Processes
from clipa_eqx.programs.slurm import slurm_place


def connect_processes(processes: Processes, *, check: Callable[[], None] | None = None) -> None:
    """Connect, open the devices, and number the lines of this process's log.

    If the others do not come in time, the program ends with one message and exit code 2.

    Args:
        check: a check for process 0 only, such as of a file that it will write; if it raises, all processes end.

    Raises:
        ConfigError: the flags are wrong, or there is no cluster, no coordinator or no device.
        ClipaError: what ``check`` raised; on the other processes a ConfigError.
    """
    place = coordinator(processes.address, processes.count, processes.index) or slurm_place(os.environ)
    connect(place, seconds=processes.seconds or CONNECT_SECONDS, give_up=_end)
    open_devices()
    set_up_logging(process_index=jax.process_index())
    if check is not None:
        with refused_together("start"):
            if is_first_process():
                check()


def is_first_process() -> bool:
    """Whether this is the process that writes results: process 0, or the only one."""
    return jax.process_index() == 0


def _end(message: str) -> NoReturn:
    # The main thread waits inside of JAX, which would end the process with a stack trace: no exception can reach it.
    print_error(f"error: {message}")
    os._exit(USAGE)
