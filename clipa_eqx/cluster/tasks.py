"""Jobs as tasks of a cluster: a bounded number at a time, repeated after a loss, with progress over all nodes."""

import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from clipa_eqx.cluster.attempts import Differs, Done, Failed, Started, attempt
from clipa_eqx.cluster.connection import Cluster
from clipa_eqx.cluster.lasting import LastingProcesses
from clipa_eqx.cluster.nodes import differing, first_line, name_of, working_nodes
from clipa_eqx.cluster.repeating import Attempt, next_attempt, taken
from clipa_eqx.errors import ConfigError, counted
from clipa_eqx.progress import LINE_EVERY

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


def run_tasks(
    cluster: Cluster,
    work: Callable[[Job, Callable[[int], None]], Result],
    jobs: Iterable[Job],
    *,
    name: Callable[[Job], str],
    watch: Callable[[int, str], None],
    processes: LastingProcesses | None = None,
    repeated: Callable[[Job], object] = lambda job: None,
) -> Generator[tuple[Job, Result]]:
    """Call ``work(job, seen)`` for each job in worker processes of the nodes and yield the results as they come.

    An attempt is repeated if its worker process or node was lost, memory ran out, or storage did not answer: a little
    later, and on another node if there is one. However the iteration ends, no task remains.

    Args:
        work: a picklable function; it calls ``seen(n)`` after n more units.
        jobs: picklable; taken one by one, as processors become free.
        name: name of a job in messages.
        watch: called about twice a second with the units that running attempts have seen, and a note about nodes.
        processes: those that work; by default Ray starts and ends them, and each job has a processor.
        repeated: called with each job that gets a further attempt; one that seemed lost may still be at work.

    Raises:
        DataError: a job failed several times.
        ConfigError: a node that joined the cluster meanwhile differs from this process.
        Exception: what ``work`` raises otherwise, with the same class and message.
    """
    run = _Run(cluster, work, processes)
    waiting: list[Attempt] = []
    rest = (Attempt(job=job, name=name(job)) for job in jobs)
    try:
        while True:
            room = run.room()
            for task in itertools.islice(itertools.chain(taken(waiting, has_place=run.has_place), rest), room):
                run.start(task)
            if not run.running and not waiting and room > 0:
                return
            for stream in run.ready():
                task = run.running[stream]
                end = run.step(stream, task)
                if isinstance(end, Done):
                    run.end(stream, task, may_last=True)
                    yield task.job, end.result
                elif end is not None:
                    run.end(stream, task, may_last=isinstance(end, Failed))
                    waiting.append(next_attempt(task, end.message if isinstance(end, Failed) else end))
                    repeated(task.job)
            for task in run.lost():
                waiting.append(next_attempt(task, _NODE_LOST))
                repeated(task.job)
            watch(sum(task.units for task in run.running.values()), run.note())
    finally:
        run.cancel()


class _Run:
    """The streams of all attempts that run or wait for a processor."""

    def __init__(self, cluster: Cluster, work: Callable[..., Any], processes: LastingProcesses | None) -> None:
        import ray

        self.cluster, self.work, self.processes = cluster, work, processes
        self.running: dict[Any, Attempt] = {}
        self.task: Any = ray.remote(attempt)
        self.looked = self.began = time.monotonic()
        self.nodes = working_nodes()

    def room(self) -> int:
        """The number of further attempts that may run or wait."""
        now = time.monotonic()
        if now - self.looked > _LOOK_EVERY:
            self.looked, self.nodes = now, working_nodes()
        if self.processes is not None:
            return self.processes.idle(self.nodes)
        # Two for each slot, so that none waits for the next job, and a cluster that grows sees that it should.
        most = max(2 * self._slots(), 2)
        at_once = self.cluster.at_once
        # More may run than should, once a node has left.
        return max(0, (most if at_once is None else min(most, at_once)) - len(self.running))

    def has_place(self, task: Attempt) -> bool:
        """Whether a repeated attempt would not return to a node where the job failed, if there are others."""
        return self.processes is None or self.processes.has_place(task.failed_on)

    def start(self, task: Attempt) -> None:
        """Start an attempt."""
        setting = replace(self.cluster.setting, every=max(1.0, self._slots() / _REPORTS))
        # Ray must not repeat it: we count attempts and say why there is another one.
        if self.processes is None:
            options = {"num_cpus": 1, "max_retries": 0, "scheduling_strategy": self._place(task.failed_on)}
            call: Any = self.task.options(**options, num_returns="streaming", name=task.name)
        else:
            task.process = self.processes.take(task.failed_on)
            call = task.process.actor.attempt.options(max_task_retries=0, num_returns="streaming", name=task.name)
        self.running[call.remote(self.work, task.job, setting)] = task

    def end(self, stream: Any, task: Attempt, *, may_last: bool) -> None:
        """Forget an attempt that has ended.

        Args:
            may_last: its process may work on; otherwise it is replaced.
        """
        del self.running[stream]
        if self.processes is not None and task.process is not None:
            (self.processes.give_back if may_last else self.processes.drop)(task.process)

    def ready(self) -> list[Any]:
        """The streams that have something to say, after waiting for the first one."""
        import ray

        streams = list(self.running)
        if not streams:  # processes start
            time.sleep(0.1)
            return []
        first, rest = ray.wait(streams, timeout=0.5, fetch_local=False)
        more = ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0] if first and rest else []
        return [*first, *more]

    def step(self, stream: Any, task: Attempt) -> Done | Failed | str | None:
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
            self.looked = -math.inf  # idle processes of that node must not get the next attempt
            return _NODE_LOST
        except exceptions.RayActorError:
            self.looked = -math.inf
            return "its worker process or the node died; did memory run out?"
        except exceptions.RayError as error:
            return first_line(error)
        match said:
            case Started(node=node):
                task.node, self.began = node, time.monotonic()
            case Done():
                return said
            case Failed(may_pass=True):
                return said
            case Failed():
                raise _error_of(said)
            case Differs(node=node, how=how):
                raise ConfigError(differing([f"{name_of(node)}: {one}" for one in how]))
            case units:
                task.units = units
        return None

    def lost(self) -> list[Attempt]:
        """Give up the attempts on nodes that have left the cluster. Ray itself waits while they are connected.

        Should a process there still write, it writes the same bytes.
        """

        def elsewhere() -> list[Any]:
            here = {None, *(node.id for node in self.nodes)}
            return [stream for stream, task in self.running.items() if task.node not in here]

        if elsewhere():  # or on nodes that have just joined
            self.looked, self.nodes = time.monotonic(), working_nodes()
        gone = elsewhere()
        for stream in gone:
            self.stop(stream)
        return [self.running.pop(stream) for stream in gone]

    def stop(self, stream: Any) -> None:
        """End an attempt that runs or waits."""
        import ray

        process = self.running[stream].process
        if self.processes is not None and process is not None:
            self.processes.drop(process)
        else:
            ray.cancel(stream, force=True)

    def note(self) -> str:
        """Describe where attempts run, for the progress bar; the log has a line if none has begun for long."""
        at = [task.node for task in self.running.values() if task.node is not None]
        if not at and time.monotonic() - self.began > LINE_EVERY:
            self.began = time.monotonic()
            total, needs = self._slots(), "a processor" if self.processes is None else self.processes.needs(self.nodes)
            _log.warning(
                "no task has begun for a while: each needs %s, and %s",
                needs,
                f"the cluster's {counted(total, 'processor')} may be in use by others; `ray status` shows it"
                if total
                else "the cluster has no node with processors; start one with `ray start`",
            )
        return f"{counted(len(at), 'task')} on {counted(len(set(at)), 'node')}"

    def cancel(self) -> None:
        """End all attempts that run or wait."""
        import ray

        if not ray.is_initialized():
            return
        for stream in self.running:
            self.stop(stream)
        end = time.monotonic() + _CANCEL_WITHIN
        while self.running and time.monotonic() < end:
            for stream in self.ready():
                if _is_over(stream):
                    del self.running[stream]

    def _place(self, failed_on: Collection[str]) -> Any:
        """The place of an attempt: any node, or the most idle one of those where the job did not fail.

        A node where every attempt fails at once, such as one with a full disk, is always free and would get them all.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        others = [node for node in self.nodes if node.id not in failed_on]
        if not failed_on or not others:
            return "DEFAULT"
        at = Counter(task.node for task in self.running.values())
        best = min(others, key=lambda node: at[node.id] / node.processors)
        return NodeAffinitySchedulingStrategy(node_id=best.id, soft=True)

    def _slots(self) -> int:
        return sum(node.processors for node in self.nodes)


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
