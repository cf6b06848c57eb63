"""TPU slices by name, described by libtpu on a machine without any TPU."""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

from clipa_eqx.errors import ConfigError, pip_install
from clipa_eqx.planning.chips import CHIPS, Chip

EXAMPLE = "v3:16x16"

_ENVIRONMENT = {
    # Compiling happens on the CPU; a TPU that is there belongs to other programs.
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Without these libtpu asks a metadata server which machine it is on, and logs that it does not answer.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


class Slice(NamedTuple):
    """A slice of TPU chips.

    Attributes:
        name: its topology, such as "v5e:16x16".
        shape: chips along each axis of its grid.
        devices: abstract devices of JAX, to compile for; a chip has one or two.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    devices: tuple[Any, ...]

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def devices_per_chip(self) -> int:
        """Devices that a chip has: 2 on a v3 and a v4, whose cores are compiled for one by one."""
        return len(self.devices) // self.chips


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """Chip and grid of a topology name.

    >>> parse_topology("v5e:4x8")[1]
    (4, 8)

    Raises:
        ConfigError: it is no topology name, or its chip is not known.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
    if found is None:
        raise ConfigError(f"--topology is {name!r}; give chip and grid, such as {EXAMPLE} or v4:8x8x4")
    if found[1] not in CHIPS:
        raise ConfigError(f"--topology {name}: the chip {found[1]} is not known; choose one of {', '.join(CHIPS)}")
    shape = tuple(int(size) for size in found[2].split("x"))
    if not math.prod(shape):
        raise ConfigError(f"--topology {name}: a grid has at least one chip along each axis")
    return CHIPS[found[1]], shape


def check_compiler() -> None:
    """Check that libtpu is installed.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"compiling for a TPU needs the extra plan, which is not installed; run {pip_install('libtpu')}"
        )


def set_environment() -> None:
    """Set the variables that libtpu reads when it is loaded; call this before JAX is imported."""
    os.environ.update(_ENVIRONMENT)


def open_slice(name: str) -> Slice:
    """The slice of a topology, as libtpu describes it. Call ``set_environment`` first.

    Raises:
        ConfigError: libtpu is not installed, or does not know such a slice.
    """
    chip, shape = parse_topology(name)
    check_compiler()
    from jax.experimental import topologies

    # Chips of a host along each axis; the slices of a single host may be smaller than 2x2.
    host = tuple(min(full, size) for full, size in zip((2, 2, 1), (*shape, 1), strict=False))
    try:
        devices: Any = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chips_per_host_bounds=host
        ).devices
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or ["no reason is given"])[0]
        raise ConfigError(
            f"--topology {name}: libtpu has no such slice ({reason}); give an even number of chips along each axis, "
            f"such as {EXAMPLE}"
        ) from error
    return Slice(name, chip, shape, tuple(devices))
