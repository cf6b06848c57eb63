"""One attempt at a job in a worker process of a node: what it reports while it runs, and how it ends."""

import concurrent.futures
import contextlib
import os
import pickle
import shutil
import tempfile
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from clipa_eqx.cluster.facts import Facts, differences
from clipa_eqx.errors import ClipaError
from clipa_eqx.foreign_output import quiet_libraries

if TYPE_CHECKING:  # the decorator of the standard library would also hide the types from readers of the package
    Function = TypeVar("Function", bound=Callable[..., object])

    def no_type_check(function: Function) -> Function:
        """Return a function unchanged, also where the types of all functions are checked at run time."""
        return function
else:
    from typing import no_type_check

_PREFIX = "clipa_eqx-worker-"  # of the folder with the temporary files of an attempt
_CLIENTS = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "s3fs", "urllib3")
"""Packages that talk to buckets; some of their errors are no ``OSError``."""

_compared: set[str] = set()  # runs whose facts this process has compared


class Started(NamedTuple):
    """An attempt began.

    Attributes:
        node: id of the node.
    """

    node: str


class Done(NamedTuple):
    """The job is done."""

    result: Any


class Failed(NamedTuple):
    """An attempt failed.

    Attributes:
        message: the message of the error.
        kind: class of the error, if it is one of ``clipa_eqx.errors``.
        may_pass: another attempt may succeed: storage did not answer, or memory ran out.
        error: any other error, if it can be sent.
        text: the traceback of any other error.
    """

    message: str
    kind: type[ClipaError] | None = None
    may_pass: bool = False
    error: Exception | None = None
    text: str = ""


class Differs(NamedTuple):
    """A worker process refuses all work of a run, because it differs from the process that started the run.

    Attributes:
        node: id of the node.
        how: sentences.
    """

    node: str
    how: list[str]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The common setting of all attempts of a run.

    Attributes:
        run: random name of the run.
        facts: collect facts about the process that calls it.
        expected: these facts in the process that started the run.
        folder: the current folder of that process, to which relative paths belong.
        every: seconds between two reports.
    """

    run: str
    facts: Callable[[], Facts]
    expected: Facts
    folder: str
    every: float = 1.0


def node_of_process() -> str:
    """The id of the node on which a worker process runs."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


@no_type_check  # at run time: Ray must see a generator function, which a wrapper would hide
def attempt(
    work: Callable[[Any, Callable[[int], None]], Any], job: Any, setting: Setting
) -> Iterator[Started | int | Done | Failed | Differs]:
    """Call ``work(job, seen)`` and yield ``Started``, now and then the units seen so far, and how it ended.

    The first attempt of a run in a process compares its facts before anything else.
    """
    node = node_of_process()
    if problems := prepare(setting):
        yield Differs(node, problems)
        return
    yield Started(node)
    parent, units = os.getppid(), 0

    def seen(more: int) -> None:
        nonlocal units
        units += more

    def run() -> Done | Failed:
        with _temporary_files():
            try:
                return Done(work(job, seen))
            except Exception as error:
                return _failed(error)

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        future = thread.submit(run)
        while True:
            try:
                end = future.result(timeout=setting.every)
                break
            except concurrent.futures.TimeoutError:
                if os.getppid() != parent:
                    os._exit(1)  # the node has died: this attempt is being repeated elsewhere
                yield units
    yield end


def prepare(setting: Setting) -> list[str]:
    """Make this worker process like the one that started the run; return how it differs nevertheless."""
    if setting.run in _compared:
        return []
    quiet_libraries()
    with contextlib.suppress(OSError):  # paths from the root need no folder, and others are then found missing
        os.chdir(setting.folder)
    problems = differences(setting.expected, setting.facts())
    if not problems:
        _remove_left_files()
        _compared.add(setting.run)
    return problems


@contextlib.contextmanager
def _temporary_files() -> Generator[None]:
    """Put temporary files into a folder of this attempt, which a later process removes if this one is killed."""
    base = Path(tempfile.gettempdir())
    while True:
        folder, handle = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base)), None
        try:
            handle = _locked(folder)
        except (BlockingIOError, FileNotFoundError):  # another process took it for a left one in this moment
            continue
        except OSError:  # this file system has no locks, so that no process removes what is left there
            pass
        break
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _remove_left_files() -> None:
    """Remove the temporary files of attempts whose processes were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # in use, not ours, gone, or without locks
            handle = _locked(left)
            shutil.rmtree(left, ignore_errors=True)
            os.close(handle)


def _locked(folder: Path) -> int:
    """An open handle that locks a folder.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it is gone, or of another user, or its file system has no locks.
    """
    import fcntl  # some systems without Ray have none

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _failed(error: Exception) -> Failed:
    may_pass = isinstance(error, MemoryError) or is_of_storage(error)
    if isinstance(error, ClipaError):
        return Failed(str(error), type(error), may_pass)
    text = "".join(traceback.format_exception(error))
    if may_pass:
        return Failed(f"{type(error).__name__}: {error}", None, True, None, text)
    return Failed(f"{type(error).__name__}: {error}", None, False, _sendable(error), text)


def is_of_storage(error: BaseException) -> bool:
    """Whether a disk, network or bucket caused an error, so that the same work may succeed later or on another node.

    It is then an ``OSError``, an error of a client of buckets, or one of ours that was raised from one of these.
    """
    causes = [error] if error.__cause__ is None else [error, error.__cause__]
    return any(isinstance(one, OSError) or type(one).__module__.split(".")[0] in _CLIENTS for one in causes)


def _sendable(error: Exception) -> Exception | None:
    try:
        return error if type(pickle.loads(pickle.dumps(error))) is type(error) else None
    except Exception:
        return None
