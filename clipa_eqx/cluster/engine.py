"""The choice of what runs the work of a command: processes of this machine, or the nodes of a Ray cluster."""

import re
from dataclasses import dataclass
from typing import Literal

from clipa_eqx.errors import ConfigError

ENGINE_HELP = (
    "local: processes of this machine; ray: the Ray cluster of RAY_ADDRESS or of this machine, else one started for "
    "this command; ray:HOST:PORT: that cluster (local)"
)
"""What ``--help`` says about ``--engine``."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A choice of what runs the work of a command.

    Attributes:
        kind: "local" for processes of this machine, "ray" for the nodes of a Ray cluster.
        address: HOST:PORT of the cluster; None for the one that Ray's settings name, or a new one.
    """

    kind: Literal["local", "ray"] = "local"
    address: str | None = None


LOCAL = Engine()


def parse_engine(text: str) -> Engine:
    """The engine that ``--engine`` names: ``local``, ``ray`` or ``ray:HOST:PORT``.

    >>> parse_engine("ray:10.0.0.1:6379").address
    '10.0.0.1:6379'

    Raises:
        ConfigError: it is none of these.
    """
    if text in ("local", "ray"):
        return LOCAL if text == "local" else Engine(kind="ray")
    kind, _, address = text.partition(":")
    if kind == "ray" and address:
        return Engine(kind="ray", address=check_address(address, given=f"--engine {text}"))
    raise ConfigError(f"--engine {text}: choose local, ray or ray:HOST:PORT")


def check_address(address: str, *, given: str) -> str:
    """The address of a cluster, if it is one that tasks can be started at.

    Args:
        given: where the user wrote it, for messages.

    Raises:
        ConfigError: it is one of Ray Client, or not HOST:PORT.
    """
    if "//" in address:
        raise ConfigError(
            f"{given} is an address of Ray Client, which cannot run this command; start the command on a node of the "
            "cluster with --engine ray, or by `ray job submit`"
        )
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[^\s/]+", host) or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{given}: a cluster has an address such as 10.0.0.1:6379, its head's HOST:PORT")
    return address
