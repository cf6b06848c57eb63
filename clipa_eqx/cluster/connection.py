"""Connection of a command to a Ray cluster, or to one that is started for it."""

import contextlib
import importlib.util
import logging
import os
import secrets
import signal
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from clipa_eqx.cluster.answering import no_answer
from clipa_eqx.cluster.attempts import Setting
from clipa_eqx.cluster.engine import Engine, check_address
from clipa_eqx.cluster.facts import Facts, both
from clipa_eqx.cluster.nodes import compare_nodes, describe_nodes
from clipa_eqx.errors import ConfigError, counted, pip_install
from clipa_eqx.progress import waiting

_HERE = "this machine"
_TOKEN = Path("~/.ray/auth_token").expanduser()
_OBJECT_STORE = 256 * 2**20  # bytes; jobs and results are small
_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """An open connection to a cluster whose nodes have been compared with this process.

    Attributes:
        setting: what worker processes compare, and where they work.
        at_once: most tasks at a time; None for as many as the cluster takes.
    """

    setting: Setting
    at_once: int | None = None

    def expecting(self, more: Callable[[], Facts], expected: Facts) -> "Cluster":
        """This cluster, whose worker processes compare more facts before their first task; ``compare_nodes`` compares
        them at once.
        """
        setting = replace(
            self.setting,
            run=uuid.uuid4().hex,
            facts=partial(both, self.setting.facts, more),
            expected={**self.setting.expected, **expected},
        )
        return replace(self, setting=setting)


@contextlib.contextmanager
def connected(engine: Engine, *, facts: Callable[[], Facts], at_once: int | None = None) -> Generator[Cluster]:
    """Connect to the cluster of an engine and compare its nodes; the end of the block ends all tasks of the block.

    A cluster that is started here ends with the block, or with this process. A connection that the program has made
    itself is used and stays.

    Args:
        engine: one of kind "ray".
        facts: a picklable function: the facts that decide what the work gives. It is called here and on the nodes.
        at_once: most tasks at a time; None for as many as the cluster takes.

    Raises:
        ConfigError: Ray is not installed, no cluster answers, its versions are others, or its nodes differ.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(f"--engine ray needs the package ray, which is not installed: {pip_install('ray')}")
    address, of = _address(engine)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(_authentication(of)))  # before the import, which reads it
        stack.enter_context(_connection(address, of))
        setting = Setting(run=uuid.uuid4().hex, facts=facts, expected=facts(), folder=str(Path.cwd()))
        compare_nodes(setting)
        yield Cluster(setting=setting, at_once=at_once)


@contextlib.contextmanager
def _connection(address: str | None, of: str) -> Generator[None]:
    import ray

    if ray.is_initialized():
        yield
        return
    if address is not None and (problem := no_answer(address)) is not None:
        if of != _HERE:
            raise ConfigError(
                f"no Ray cluster answers at {address} ({problem}); is it running, and is this its head's address? "
                "`ray status` on its head shows it"
            )
        _log.info("the Ray cluster of this machine at %s does not answer any more", address)
        address = None
    try:
        with waiting("connecting to Ray"):
            _init(address)
        if address is None:
            _log.info("Ray: started for this command on %s", counted(_processors(), "processor"))
        else:
            _log.info("Ray: the cluster at %s (%s), %s", address, of, describe_nodes())
        yield
    finally:
        ray.shutdown()
        _show_node_messages(True)


def _address(engine: Engine) -> tuple[str | None, str]:
    """The address of a cluster, None to start one, and where it is from."""
    if engine.address is not None:
        return engine.address, "--engine"
    if given := os.environ.get("RAY_ADDRESS", ""):
        if given == "local":
            return None, ""
        if given != "auto":
            return check_address(given, given=f"RAY_ADDRESS={given}"), "RAY_ADDRESS"
    # Ray's own search would also take clusters that other users of this machine have started.
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    path = Path(folder, "ray", "ray_current_cluster")
    try:
        with path.open(encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_uid == os.getuid():
                return check_address(file.read().strip(), given=str(path)), _HERE
        _log.info("%s is of another user: the cluster that it names is not used", path)
    except FileNotFoundError:
        pass
    except (OSError, UnicodeError, ConfigError) as error:
        _log.info("%s names no cluster (%s)", path, error)
    return None, ""


def _authentication(of: str) -> dict[str, str]:
    """Settings of the tokens that clusters of Ray 2.60 and later may ask for, where the user has made none.

    A cluster that is started here gets a token of its own; Ray would leave one in the user's folder, and from then on
    every cluster of the user would ask for it. For a cluster that runs here, Ray itself takes a token that it finds.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    if not of:
        return {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    has_token = bool({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()) or _TOKEN.is_file()
    return {"RAY_AUTH_MODE": "token"} if of == _HERE and has_token and "ray" not in sys.modules else {}


def _init(address: str | None) -> None:
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        options |= {
            "address": "local",
            "num_cpus": _processors(),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE,
            "_node_ip_address": "127.0.0.1",
        }
    else:
        options |= {"address": address}
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    _show_node_messages(False)
    try:
        with _environment(_QUIET), _signals_kept(), _own_process_group(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(**options)
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise ConfigError(_unusable(address, error)) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip().startswith(("Ray:", "Python:"))]
        there, here = ", ".join(lines[:2]), ", ".join(lines[2:4])
        raise ConfigError(
            f"the Ray cluster at {address} has other versions ({there}) than this process ({here}); use the same ones"
        ) from error
    except (ConnectionError, ValueError, OSError) as error:
        raise ConfigError(_unusable(address, error)) from error
    except SystemExit as error:  # Ray ends the process when nothing answers for long
        raise ConfigError(_unusable(address, error)) from error


def _unusable(address: str | None, error: BaseException) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if address is None:
        hint = "; set RAY_TMPDIR to a folder with a shorter path, such as /tmp" if "AF_UNIX" in reason else ""
        return f"Ray cannot be started here: {reason}{hint}"
    return (
        f"the Ray cluster at {address} cannot be used from here: {reason}; start the command on a node of the cluster, "
        "or by `ray job submit`, and with RAY_AUTH_MODE=token if the cluster asks for a token"
    )


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Generator[None]:
    """Set environment variables for the block, except for those that the user has set."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _signals_kept() -> Generator[None]:
    """Put back the handlers of signals that Ray replaces by its own, with other exit codes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _own_process_group() -> Generator[None]:
    """Keep signals that a terminal or scheduler sends to our group away from the processes of a cluster started here.

    They end with this process anyway, and without them it could not end in order.
    """
    services: Any = importlib.import_module("ray._private.services")
    before: Any = getattr(services, "ConsolePopen", None)
    if before is None:
        yield
        return
    services.ConsolePopen = partial(before, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = before


def _show_node_messages(shown: bool) -> None:
    """Whether Ray prints what happens to its workers on standard output, which holds our results."""
    module: Any = importlib.import_module("ray._private.worker")
    if hasattr(module, "_worker_logs_enabled"):
        module._worker_logs_enabled = shown


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
