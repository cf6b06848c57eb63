"""Jobs in worker processes of this machine or of a cluster, with progress.

No orphan remains after Ctrl-C, SIGTERM, SIGHUP or a killed parent.
"""

import concurrent.futures
import itertools
import multiprocessing
import tempfile
from collections.abc import Callable, Generator, Iterable
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from clipa_eqx.cluster.connection import Cluster
from clipa_eqx.cluster.tasks import run_tasks
from clipa_eqx.data.worker_processes import follow_parent, signals_blocked
from clipa_eqx.errors import DataError
from clipa_eqx.progress import progress_bar

Job = TypeVar("Job")
Result = TypeVar("Result")
Work = Callable[[Job, Callable[[int], None]], Result]
Workers = int | Cluster
"""Number of processes of this machine, or the open connection to a cluster."""

_counter: Any = None  # in worker processes: units seen by all of them, shared with the parent


class Progress:
    """A progress bar over bytes or rows with rate and time left. Running jobs count by the units they have seen.

    Args:
        total: units of all jobs.
        unit: name of the unit.
        what: label of the bar.
        done: units done by an earlier run.
    """

    def __init__(self, *, total: int, unit: str, what: str, done: int = 0) -> None:
        self._bar: Any = progress_bar(what=what, total=total, unit=unit, initial=done, delay=0.0)
        self._done = done
        self._note = self._where = ""

    def finish(self, units: int, note: str = "") -> None:
        """Count a finished job of this many units, and show a note."""
        self._done += units
        self.show(0)
        self._note = note or self._note
        self._annotate()

    def show(self, running: int, where: str = "") -> None:
        """Show the units of finished jobs plus those that running jobs have seen.

        Args:
            running: units seen by running jobs.
            where: a note about the nodes that run them.
        """
        if where and where != self._where:
            self._where = where
            self._annotate()
        done = min(self._done + max(running, 0), self._bar.total)
        self._bar.update(max(done - self._bar.n, 0))

    def close(self) -> None:
        """Keep the bar as shown."""
        self._bar.close()

    def _annotate(self) -> None:
        if notes := [note for note in (self._where, self._note) if note]:
            self._bar.set_postfix_str(", ".join(notes), refresh=False)


def run_jobs(
    work: Work[Job, Result],
    jobs: Iterable[Job],
    *,
    workers: Workers,
    progress: Progress,
    name: Callable[[Job], str] | None = None,
) -> Generator[tuple[Job, Result]]:
    """Call ``work(job, seen)`` for each job and yield the results as they come.

    Workers of this machine are new processes (spawn). They leave Ctrl-C, SIGTERM and SIGHUP to the parent, and exit
    when it is gone. However the iteration ends, no worker remains, and none of their temporary files unless the parent
    was killed too.

    Args:
        work: a picklable function; it calls ``seen(n)`` after n more units.
        workers: number of processes, where 1 is this process, one job after the other; or a cluster, whose lost workers
            cost only the work on their jobs, which is repeated.
        name: name of a job in messages about a cluster; without it jobs are numbered.

    Raises:
        DataError: a worker died, for example because memory ran out; also whatever ``work`` raises.
    """
    if isinstance(workers, Cluster):
        numbers = itertools.count(1)
        yield from run_tasks(workers, work, jobs, name=name or (lambda _: f"job {next(numbers)}"), watch=progress.show)
        return
    if workers <= 1:
        seen_units = 0

        def count(units: int) -> None:
            nonlocal seen_units
            seen_units += units
            progress.show(seen_units)

        for job in jobs:
            seen_units = 0
            yield job, work(job, count)
        return
    with tempfile.TemporaryDirectory(prefix="clipa_eqx-") as folder:
        yield from _run_in_processes(work, jobs, workers=workers, progress=progress, folder=folder)


def _run_in_processes(
    work: Work[Job, Result], jobs: Iterable[Job], *, workers: int, progress: Progress, folder: str
) -> Generator[tuple[Job, Result]]:
    context = multiprocessing.get_context("spawn")
    with signals_blocked():  # this starts a helper process, which inherits the mask
        counter = context.Value("q", 0)
    others = set(multiprocessing.active_children())
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(counter, folder)
    )
    rest = iter(jobs)
    running: dict[concurrent.futures.Future[tuple[Result, int]], Job] = {}
    try:
        while True:
            for job in itertools.islice(rest, 2 * workers - len(running)):
                with signals_blocked():  # the first call starts the workers, which inherit the mask
                    running[pool.submit(_work, work, job)] = job
            if not running:
                return
            done, _ = concurrent.futures.wait(running, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                result, units = future.result()
                with counter.get_lock():
                    counter.value -= units
                yield running.pop(future), result
            progress.show(counter.value)
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died; did it run out of memory? Repeat the same command to resume; it needs less with "
            "fewer --workers"
        ) from error
    finally:
        if running:
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(counter: Any, folder: str) -> None:
    global _counter
    _counter = counter
    tempfile.tempdir = folder
    follow_parent()


def _work(work: Work[Job, Result], job: Job) -> tuple[Result, int]:
    total = 0

    def seen(units: int) -> None:
        nonlocal total
        total += units
        with _counter.get_lock():
            _counter.value += units

    return work(job, seen), total
