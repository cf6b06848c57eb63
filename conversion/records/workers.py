"""Jobs over processes that leave no orphans: progress, Ctrl-C, SIGTERM, SIGHUP, and a parent that is killed."""

import concurrent.futures
import itertools
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from clipa_eqx.data.worker_processes import follow_parent, signals_blocked
from clipa_eqx.errors import DataError

Job = TypeVar("Job")
Result = TypeVar("Result")
Work = Callable[[Job, Callable[[int], None]], Result]

_counter: Any = None  # in worker processes: what this and the other workers have seen so far, shared with the parent


class Progress:
    """A bar over bytes or rows with rate and time left; jobs under way count by what they have seen.

    `done` units were done by an earlier run.
    """

    def __init__(self, *, total: int, unit: str, what: str, done: int = 0) -> None:
        self._bar: Any = tqdm(
            total=total,
            initial=done,
            desc=what,
            unit=unit,
            unit_scale=unit == "B",
            unit_divisor=1000,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 20,
        )
        self._done = done

    def finish(self, units: int, note: str = "") -> None:
        """A job that was `units` long is done."""
        self._done += units
        self.show(0)
        if note:
            self._bar.set_postfix_str(note, refresh=False)

    def show(self, under_way: int) -> None:
        done = min(self._done + max(under_way, 0), self._bar.total)
        self._bar.update(max(done - self._bar.n, 0))

    def close(self) -> None:
        self._bar.close()


def run_jobs(
    work: Work[Job, Result], jobs: Iterable[Job], *, workers: int, progress: Progress
) -> Generator[tuple[Job, Result]]:
    """`work(job, seen)` for each job, yielded as they end. 1 worker is this process, one job after the other.

    Workers are started fresh (spawn), leave Ctrl-C, SIGTERM and SIGHUP to the parent, and exit when it is gone.
    However the iteration ends, no worker is left, and none of their temporary files unless the parent was killed too.
    `seen(n)` is for the work to say that it has seen n more units.

    Raises:
        DataError: a worker died, as when memory ran out; also whatever `work` raises.
    """
    if workers <= 1:
        under_way = 0

        def count(units: int) -> None:
            nonlocal under_way
            under_way += units
            progress.show(under_way)

        for job in jobs:
            under_way = 0
            yield job, work(job, count)
        return
    with tempfile.TemporaryDirectory(prefix="clipa_eqx-") as folder:
        yield from _run_in_processes(work, jobs, workers=workers, progress=progress, folder=folder)


def _run_in_processes(
    work: Work[Job, Result], jobs: Iterable[Job], *, workers: int, progress: Progress, folder: str
) -> Generator[tuple[Job, Result]]:
    context = multiprocessing.get_context("spawn")
    with signals_blocked():  # this starts a helper of the library, which inherits it
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
                with signals_blocked():  # the first of these starts the workers, which inherit it
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
            "a worker process died; was it killed for want of memory? The same command goes on from here, "
            "with fewer --workers it needs less"
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
