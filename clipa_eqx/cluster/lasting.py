"""Worker processes that last from job to job, so that each loads a large model once: one per accelerator or node."""

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, no_type_check

from clipa_eqx.cluster.attempts import Differs, Done, Failed, Setting, Started, attempt
from clipa_eqx.cluster.nodes import Node


@dataclass(frozen=True, eq=False)
class Lasting:
    """A worker process.

    Attributes:
        actor: Ray's handle.
        node: id of its node.
    """

    actor: Any
    node: str


class LastingProcesses:
    """The worker processes of a cluster that ``lasting_processes`` gives, for ``run_tasks``.

    Each has an accelerator, if the cluster has any; otherwise it has the processors of its node, or its share of them.
    """

    def __init__(self, at_once: int | None) -> None:
        self._at_once = at_once
        self._idle: list[Lasting] = []
        self._all: set[Lasting] = set()
        self._starting: dict[Any, Lasting] = {}

    def needs(self, nodes: list[Node]) -> str:
        """The needs of each process, in words."""
        return "a processor and a GPU" if _has_gpus(nodes) else "all processors of a node, or its share of them"

    def idle(self, nodes: list[Node]) -> int:
        """Start processes on nodes that have place, and return how many processes wait for a job."""
        import ray
        from ray import exceptions

        for process in [one for one in self._idle if one.node not in {node.id for node in nodes}]:
            self._idle.remove(process)
            self.drop(process)
        wanted = places(nodes, self._at_once)
        here = Counter(process.node for process in self._all)
        for node in nodes:
            for _ in range(wanted[node.id] - here[node.id]):
                self._start(node, wanted[node.id], has_gpu=_has_gpus(nodes))
        ready, _ = (
            ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0) if self._starting else ([], [])
        )
        for ref in ready:
            process = self._starting.pop(ref)
            try:
                ray.get(ref)
                self._idle.append(process)
            except exceptions.RayError:  # its node has left, or its memory ran out: another look starts another one
                self.drop(process)
        return len(self._idle)

    def has_place(self, avoided: Collection[str]) -> bool:
        """Whether a process waits that is not on avoided nodes, or none is anywhere else.

        Args:
            avoided: ids of nodes.
        """
        return bool(_elsewhere(self._idle, avoided)) or not _elsewhere(self._all, avoided)

    def take(self, avoided: Collection[str] = ()) -> Lasting:
        """A process that waits for a job, on a node that is not avoided if there is one. Arguments as ``has_place``."""
        process = (_elsewhere(self._idle, avoided) or self._idle)[-1]
        self._idle.remove(process)
        return process

    def give_back(self, process: Lasting) -> None:
        """Let a process wait for another job."""
        self._idle.append(process)

    def drop(self, process: Lasting) -> None:
        """End a process."""
        import ray

        self._all.discard(process)
        if ray.is_initialized():
            ray.kill(process.actor)

    def close(self) -> None:
        """End all processes."""
        for process in list(self._all):
            self.drop(process)
        self._idle, self._starting = [], {}

    def _start(self, node: Node, share: int, *, has_gpu: bool) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote: Any = ray.remote(_Process)
        actor: Any = remote.options(
            num_cpus=1 if has_gpu else max(node.processors // share, 1),
            num_gpus=1 if has_gpu else 0,
            max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.id, soft=False),
        ).remote()
        process = Lasting(actor, node.id)
        self._all.add(process)
        self._starting[actor.ready.remote()] = process


@contextmanager
def lasting_processes(at_once: int | None) -> Generator[LastingProcesses]:
    """Worker processes of the connected cluster for the time of the block.

    Args:
        at_once: most processes; None for one per accelerator, or one per node of a cluster without accelerators.
    """
    processes = LastingProcesses(at_once)
    try:
        yield processes
    finally:
        processes.close()


class _Process:
    """The content of a lasting process."""

    def ready(self) -> bool:
        """Whether it has started."""
        return True

    @no_type_check  # at run time: Ray must see a generator function, which a wrapper would hide
    def attempt(
        self, work: Callable[[Any, Callable[[int], None]], Any], job: Any, setting: Setting
    ) -> Iterator[Started | int | Done | Failed | Differs]:
        """As the function ``attempt``."""
        yield from attempt(work, job, setting)


def _elsewhere(processes: Iterable[Lasting], avoided: Collection[str]) -> list[Lasting]:
    return [process for process in processes if process.node not in avoided]


def _has_gpus(nodes: list[Node]) -> bool:
    return any(node.gpus >= 1 for node in nodes)


def places(nodes: list[Node], at_once: int | None) -> Counter[str]:
    """The number of processes that each node is to have, given out in turns."""
    if _has_gpus(nodes):
        most = {node.id: min(int(node.gpus), node.processors) for node in nodes}
    else:
        most = {node.id: node.processors if at_once else 1 for node in nodes}
    turns = [id for turn in range(max(most.values(), default=0)) for id, count in most.items() if turn < count]
    return Counter(turns[:at_once])
