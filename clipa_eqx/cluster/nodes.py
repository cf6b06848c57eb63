"""The nodes of a cluster: their names and processors, and whether they are like this process."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clipa_eqx.cluster.attempts import Setting, prepare
from clipa_eqx.errors import ConfigError, counted, listed
from clipa_eqx.progress import waiting

_ANSWER_WITHIN = 120.0  # seconds; a worker process starts in a few


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that runs tasks.

    Attributes:
        id: Ray's id.
        name: host, address and the first digits of the id.
        processors: tasks at a time, as the node was started.
        gpus: its accelerators.
    """

    id: str
    name: str
    processors: int
    gpus: float


def working_nodes() -> list[Node]:
    """The nodes that are alive and have a processor for tasks."""
    import ray

    found = [_node(entry) for entry in ray.nodes() if entry["Alive"]]
    return [node for node in found if node.processors > 0]


def name_of(node: str | None) -> str:
    """The name of a node that is or was part of the cluster, by its id."""
    import ray

    return next((_node(entry).name for entry in ray.nodes() if entry["NodeID"] == node), "an unknown node")


def describe_nodes() -> str:
    """The number of working nodes and of their processors, in words."""
    nodes = working_nodes()
    return f"{counted(len(nodes), 'node')}, {counted(sum(node.processors for node in nodes), 'processor')}"


def compare_nodes(setting: Setting) -> None:
    """Compare the facts of this process with those of every working node, with one small task each.

    Raises:
        ConfigError: a node differs, cannot run our code, or does not answer.
    """
    nodes = working_nodes()
    with waiting(f"comparing {counted(len(nodes), 'node')} of the cluster with this one"):
        problems = list(_problems(nodes, setting))
    if problems:
        raise ConfigError(differing(problems))


def differing(problems: list[str]) -> str:
    """The message about nodes that differ."""
    return (
        "nodes of the cluster are not like this one; give all of them the same versions, the same code and the same "
        f"storage: {listed(problems)}"
    )


def _problems(nodes: list[Node], setting: Setting) -> Iterator[str]:
    import ray
    from ray import exceptions
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Without a processor, so that a node whose processors are all in use answers too.
    task: Any = ray.remote(prepare)
    refs = {}
    for node in nodes:
        place = NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
        refs[task.options(num_cpus=0, max_retries=0, scheduling_strategy=place).remote(setting)] = node
    end = time.monotonic() + _ANSWER_WITHIN
    while refs and time.monotonic() < end:
        ready, _ = ray.wait(list(refs), timeout=0.5)
        for ref in ready:
            node = refs.pop(ref)
            try:
                yield from (f"{node.name}: {how}" for how in ray.get(ref))
            except exceptions.RayTaskError as error:
                yield f"{node.name} cannot run our code: {_last_line(error)}"
            except exceptions.RayError as error:
                if any(other.id == node.id for other in working_nodes()):  # otherwise it has left, and gets no work
                    yield f"{node.name} cannot run tasks: {first_line(error)}"
    yield from (f"{node.name} did not answer within {_ANSWER_WITHIN:.0f} s" for node in refs.values())


def _node(entry: Any) -> Node:
    resources = entry["Resources"]
    host, address = entry["NodeManagerHostname"], entry["NodeManagerAddress"]
    return Node(
        id=entry["NodeID"],
        name=f"node {host} ({address}, {entry['NodeID'][:8]})",
        processors=int(resources.get("CPU", 0)),
        gpus=float(resources.get("GPU", 0)),
    )


def first_line(error: BaseException) -> str:
    """The first line of the message of an error of Ray."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _last_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
