"""Place of a process in a step of a Slurm job that has one process per node, which uses all devices of its node.

JAX connects the processes of a step by itself too, but gives each of them a single device. That is right for one
process per GPU; with one process per node, 7 of 8 GPUs would be idle.
"""

import re
from collections.abc import Mapping

from clipa_eqx.devices import Coordinator
from clipa_eqx.errors import ConfigError

_NEEDED = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")

_FIRST_PORT, _PORTS = 61440, 4096
"""Ports above those that Linux gives to connections; the number of the job chooses one."""


def slurm_place(variables: Mapping[str, str]) -> Coordinator | None:
    """The place of this process, or None outside of a step of Slurm, and in a step with several processes per node.

    Args:
        variables: the environment; ``srun`` sets ``SLURM_*`` in it.

    Raises:
        ConfigError: the program is in a job, but ``srun`` did not start it; or a variable of Slurm is no number.
    """
    if "OMPI_COMM_WORLD_SIZE" in variables:  # mpirun inside of the job, which JAX finds
        return None
    if "SLURM_JOB_ID" in variables and "SLURM_STEP_NODELIST" not in variables:
        raise ConfigError(
            f"--distributed: this program is in Slurm job {variables['SLURM_JOB_ID']}, but srun did not start it, so "
            "Slurm gives it no number; start it with srun, as scripts/launch/slurm.sh does, or on a single node leave "
            "out --distributed"
        )
    if any(name not in variables for name in _NEEDED):
        return None
    job, tasks, nodes, index = (
        _number(variables, name)
        for name in ("SLURM_JOB_ID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_PROCID")
    )
    if tasks != nodes:
        return None
    port = variables.get("JAX_COORDINATOR_PORT", str(_FIRST_PORT + job % _PORTS))
    return Coordinator(address=f"{first_host(variables['SLURM_STEP_NODELIST'])}:{port}", processes=tasks, index=index)


def first_host(nodes: str) -> str:
    """The first host of a list of Slurm, such as ``node007`` of ``node[007-010,012],login1``."""
    # A comma in brackets separates numbers, any other one hosts.
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first)


def _number(variables: Mapping[str, str], name: str) -> int:
    try:
        return int(variables[name])
    except ValueError:
        raise ConfigError(
            f"--distributed: {name} is {variables[name]!r}, not a number; give --coordinator-address, "
            "--num-processes and --process-index"
        ) from None
