"""Flags of programs that run on several hosts: where the processes of a run meet."""

import argparse
from dataclasses import dataclass

from clipa_eqx.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a run, as the flags have them.

    Attributes:
        address: host and port of process 0; None, like the two that follow, if JAX is to find the processes.
        count: number of processes.
        index: number of this process.
        seconds: how long the processes wait for each other; None is the default.
    """

    address: str | None
    count: int | None
    index: int | None
    seconds: int | None


def add_distributed_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--distributed`` and the flags that name the processes where JAX does not find them."""
    group = parser.add_argument_group(
        "several hosts",
        "Start the same command on each host; on clusters that JAX does not know, with three more flags.",
    )
    group.add_argument(
        "--distributed", action="store_true", help="connect the processes of Cloud TPU, Slurm, Open MPI or Kubernetes"
    )
    group.add_argument("--coordinator-address", metavar="HOST:PORT", help="host of process 0, and a free port there")
    group.add_argument("--num-processes", type=int, metavar="N", help="number of processes, usually one per host")
    group.add_argument("--process-index", type=int, metavar="I", help="number of this process, from 0")
    group.add_argument(
        "--coordinator-timeout",
        type=int,
        metavar="SECONDS",
        help="how long processes wait for each other; default: 300",
    )


def processes_of(arguments: argparse.Namespace) -> Processes | None:
    """The processes that the flags name; None for a program of a single process.

    Raises:
        ConfigError: one of the other flags without ``--distributed``, or a time below 1 second.
    """
    flags = {
        "--coordinator-address": arguments.coordinator_address,
        "--num-processes": arguments.num_processes,
        "--process-index": arguments.process_index,
        "--coordinator-timeout": arguments.coordinator_timeout,
    }
    if not arguments.distributed:
        given = [flag for flag, value in flags.items() if value is not None]
        if given:
            raise ConfigError(f"{given[0]} has no effect without --distributed; add it")
        return None
    address, count, index, seconds = flags.values()
    if seconds is not None and seconds < 1:
        raise ConfigError(f"--coordinator-timeout is {seconds}; it must be at least 1 second")
    return Processes(address=address, count=count, index=index, seconds=seconds)
