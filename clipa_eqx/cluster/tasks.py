"""Jobs as tasks of a cluster: a bounded number at a time, repeated after a loss, with progress over all nodes."""

import collections
import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from clipa_eqx.cluster.attempts import Differs, Done, Failed, Started, attempt
from clipa_eqx.cluster.connection import Cluster
from clipa_eqx.cluster.nodes import differing, first_line, name_of, working_nodes
from clipa_eqx.errors import ConfigError, DataError, counted, listed
from clipa_eqx.progress import LINE_EVERY

TRIES = 3
"""Attempts at one job."""

_LOOK_EVERY = 5.0  # seconds between two looks at the nodes
_REPORTS = 200  # per second, of all tasks together
_CANCEL_WITHIN = 5.0  # seconds
_NODE_LOST = "the node died or lost its connection"

Job = TypeVar("Job")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)


class TaskTraceback(Exception):
    """The traceback of an error in a worker process, as the cause of that error in this one."""

    def __str__(self) -> str:
        return f"in a worker process:\n{self.args[0]}"


@dataclass(kw_only=True)
class _Running:
    """A job, its attempt that runs or waits for a processor, and why those before failed."""

    job: Any
    name: str
    reasons: list[str] = field(default_factory=list[str])
    node: str | None = None
    units: int = 0


def run_tasks(
    cluster: Cluster,
    work: Callable[[Job, Callable[[int], None]], Result],
    jobs: Iterable[Job],
    *,
    name: Callable[[Job], str],
    watch: Callable[[int, str], None],
    gpus: float = 0.0,
) -> Generator[tuple[Job, Result]]:
    """Call ``work(job, seen)`` for each job in worker processes of the nodes and yield the results as they come.

    An attempt is repeated if its worker process or node was lost, memory ran out, or storage did not answer. However
    the iteration ends, no task goes on.

    Args:
        work: a picklable function; it calls ``seen(n)`` after n more units.
        jobs: picklable; taken one by one, as processors become free.
        name: name of a job in messages.
        watch: called about twice a second with the units that running attempts have seen, and a note about nodes.
        gpus: accelerators that each job needs, in addition to a processor.

    Raises:
        DataError: a job failed several times.
        ConfigError: a node that joined the cluster meanwhile differs from this process.
        Exception: what ``work`` raises otherwise, with the same class and message.
    """
    run = _Run(cluster, work, gpus)
    waiting: collections.deque[_Running] = collections.deque()
    rest = (_Running(job=job, name=name(job)) for job in jobs)
    try:
        while True:
            for task in itertools.islice(itertools.chain(_drained(waiting), rest), run.room()):
                run.start(task)
            if not run.running:
                return
            for stream in run.ready():
                task = run.running[stream]
                end = run.step(stream, task)
                if isinstance(end, Done):
                    del run.running[stream]
                    yield task.job, end.result
                elif isinstance(end, str):
                    del run.running[stream]
                    waiting.append(_again(task, end))
            waiting.extend(_again(task, _NODE_LOST) for task in run.lost())
            watch(sum(task.units for task in run.running.values()), run.note())
    finally:
        run.cancel()


class _Run:
    """The streams of all attempts that run or wait for a processor."""

    def __init__(self, cluster: Cluster, work: Callable[..., Any], gpus: float) -> None:
        import ray

        self.cluster, self.work, self.gpus = cluster, work, gpus
        self.running: dict[Any, _Running] = {}
        self.task: Any = ray.remote(attempt)
        self.looked = self.began = time.monotonic()
        self.nodes = working_nodes()

    def room(self) -> int:
        """How many more attempts may run or wait."""
        now = time.monotonic()
        if now - self.looked > _LOOK_EVERY:
            self.looked, self.nodes = now, working_nodes()
        # Two for each slot, so that none waits for the next job, and a cluster that grows sees that it should.
        most = max(2 * self._slots(), 2)
        at_once = self.cluster.at_once
        return (most if at_once is None else min(most, at_once)) - len(self.running)

    def start(self, task: _Running) -> None:
        """Start an attempt."""
        # Ray must not repeat it: we count attempts and say why there is another one.
        options = {
            "num_cpus": 1,
            "num_gpus": self.gpus,
            "max_retries": 0,
            "num_returns": "streaming",
            "name": task.name,
        }
        setting = replace(self.cluster.setting, every=max(1.0, self._slots() / _REPORTS))
        self.running[self.task.options(**options).remote(self.work, task.job, setting)] = task

    def ready(self) -> list[Any]:
        """The streams that have something to say, after waiting for the first one."""
        import ray

        streams = list(self.running)
        first, rest = ray.wait(streams, timeout=0.5, fetch_local=False)
        more = ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0] if first and rest else []
        return [*first, *more]

    def step(self, stream: Any, task: _Running) -> Done | str | None:
        """Read what a stream says: the result, why the attempt failed and is to be repeated, or neither.

        Raises:
            Exception: the attempt failed for a reason that another attempt would meet too.
        """
        import ray
        from ray import exceptions

        try:
            said: Any = ray.get(next(stream))
        except StopIteration:
            return "it ended without a result"
        except exceptions.RayTaskError as error:
            raise RuntimeError(f"{task.name}: a worker process failed: {error}") from None
        except exceptions.OutOfMemoryError:
            return "memory ran out, and Ray ended its worker process"
        except exceptions.WorkerCrashedError:
            return "its worker process died; did it run out of memory?"
        except exceptions.NodeDiedError:
            return _NODE_LOST
        except exceptions.RayError as error:
            return first_line(error)
        match said:
            case Started(node=node):
                task.node, self.began = node, time.monotonic()
            case Done():
                return said
            case Failed(may_pass=True, message=message):
                return message
            case Failed():
                raise _error_of(said)
            case Differs(node=node, how=how):
                raise ConfigError(differing([f"{name_of(node)}: {one}" for one in how]))
            case units:
                task.units = units
        return None

    def lost(self) -> list[_Running]:
        """Give up the attempts on nodes that have left the cluster. Ray itself waits for as long as they are connected.

        Should a process there still write, it writes the same bytes.
        """
        import ray

        here = {node.id for node in self.nodes}
        gone = [stream for stream, task in self.running.items() if task.node is not None and task.node not in here]
        for stream in gone:
            ray.cancel(stream, force=True)
        return [self.running.pop(stream) for stream in gone]

    def note(self) -> str:
        """How many nodes work, for the progress bar; a line in the log if none has for long."""
        at = [task.node for task in self.running.values() if task.node is not None]
        if not at and time.monotonic() - self.began > LINE_EVERY:
            self.began = time.monotonic()
            total = sum(node.processors for node in self.nodes)
            _log.warning(
                "no task has begun for a while: %s",
                f"all of the cluster's {counted(total, 'processor')} may be in use by others; `ray status` shows it"
                if self._slots()
                else "no node of the cluster has what a task needs (a processor"
                f"{f' and {self.gpus:g} GPU' if self.gpus else ''}); start one with `ray start`",
            )
        return f"{counted(len(at), 'task')} on {counted(len(set(at)), 'node')}"

    def cancel(self) -> None:
        """End all attempts that run or wait."""
        import ray

        if not ray.is_initialized():
            return
        for stream in self.running:
            ray.cancel(stream, force=True)
        end = time.monotonic() + _CANCEL_WITHIN
        while self.running and time.monotonic() < end:
            for stream in self.ready():
                if _is_over(stream):
                    del self.running[stream]

    def _slots(self) -> int:
        return sum(
            min(node.processors, int(node.gpus / self.gpus)) if self.gpus else node.processors for node in self.nodes
        )


def _drained(waiting: collections.deque[_Running]) -> Iterator[_Running]:
    while waiting:
        yield waiting.popleft()


def _again(task: _Running, reason: str) -> _Running:
    """The next attempt at a job.

    Raises:
        DataError: this was the last one.
    """
    where = "before it began" if task.node is None else f"on {name_of(task.node)}"
    reasons = [*task.reasons, f"{where}: {reason}"]
    if len(reasons) >= TRIES:
        raise DataError(
            f"{task.name} failed {TRIES} times; repeat the same command to resume once the reasons are gone: "
            f"{listed(reasons)}"
        )
    _log.warning("%s failed %s; attempt %d of %d follows", task.name, reasons[-1], len(reasons) + 1, TRIES)
    return _Running(job=task.job, name=task.name, reasons=reasons)


def _error_of(failed: Failed) -> Exception:
    if failed.kind is not None:
        error = failed.kind.__new__(failed.kind, failed.message)  # some have arguments of their own
        error.args = (failed.message,)
        return error
    error = failed.error or RuntimeError(failed.message)
    error.__cause__ = TaskTraceback(failed.text)
    return error


def _is_over(stream: Any) -> bool:
    import ray
    from ray import exceptions

    try:
        ray.get(next(stream))
    except StopIteration:
        return True
    except exceptions.RayError:
        return False  # the end follows
    return False
