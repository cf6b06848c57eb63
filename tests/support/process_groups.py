"""Real processes that share their devices over gloo, and meet on a free port of this machine."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from support.paths import ROOT

CONNECTED = """
import sys
import jax

process, processes, devices, port, *arguments = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(devices))
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
"""
"""The first lines of a program for ``run_connected``; ``arguments`` are its own."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def run_connected(
    program: str, *arguments: object, folder: Path, processes: int = 2, devices: int = 1
) -> list[tuple[int, str]]:
    """Run ``program`` after ``CONNECTED`` in each process; returns exit code and output of each."""
    script = folder / "process.py"
    script.write_text(CONNECTED + program)
    port = free_port()
    return run_commands(
        [
            [sys.executable, str(script), *map(str, (number, processes, devices, port, *arguments))]
            for number in range(processes)
        ]
    )


def run_programs(programs: Sequence[str], arguments: Sequence[str]) -> list[tuple[int, str]]:
    """Run programs with an argument each, which connect by themselves, on one device each."""
    commands = [[sys.executable, "-c", program, word] for program, word in zip(programs, arguments, strict=True)]
    return run_commands(
        commands,
        JAX_PLATFORMS="cpu",
        JAX_NUM_CPU_DEVICES="1",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo",
    )


def run_commands(commands: Sequence[Sequence[str]], *, timeout: float = 300, **variables: str) -> list[tuple[int, str]]:
    """Run commands at the same time; returns exit code and output of each."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}", **variables}
    started = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in commands
    ]
    try:
        said = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]
