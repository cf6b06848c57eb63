"""Connection of a program to the other processes of its run, before any device is touched."""

import os
from typing import NoReturn

import jax

from clipa_eqx.cli import USAGE, print_error, set_up_logging
from clipa_eqx.devices import CONNECT_SECONDS, connect, coordinator, open_devices
from clipa_eqx.programs.distributed import Processes


def connect_processes(processes: Processes) -> None:
    """Connect, open the devices, and number the lines of this process's log.

    If the others do not come in time, the program ends with one message and exit code 2.

    Raises:
        ConfigError: the flags are wrong, or there is no cluster, no coordinator or no device.
    """
    place = coordinator(processes.address, processes.count, processes.index)
    connect(place, seconds=processes.seconds or CONNECT_SECONDS, give_up=_end)
    open_devices()
    set_up_logging(process_index=jax.process_index())


def _end(message: str) -> NoReturn:
    # The main thread waits inside of JAX, which would end the process with a stack trace: no exception can reach it.
    print_error(f"error: {message}")
    os._exit(USAGE)
