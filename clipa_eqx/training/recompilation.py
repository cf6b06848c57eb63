"""Compilations in the training loop: each program of the loop is compiled once, so a later one is a mistake."""

import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import jax

from clipa_eqx.errors import RecompilationError

WARM_UP = 10
"""Steps of a start that may compile, if a period of the log is no longer."""

_COMPILED = "/jax/core/compile/backend_compile_duration"

_log = logging.getLogger(__name__)


class CompileWatch:
    """A watch over what this thread compiles. Use it in a ``with`` block.

    Programs for logging, scoring and saving are compiled when they are first used, so compilations are allowed in the
    first steps, and in the first use of what ``first_use`` names.
    """

    def __init__(self, *, warm_up: int, is_allowed: bool = False) -> None:
        """Begin to watch.

        Args:
            warm_up: the last step that may compile.
            is_allowed: later compilations are warnings.
        """
        self._warm_up, self._is_allowed = warm_up, is_allowed
        self._thread = threading.get_ident()
        self._found: list[str] = []
        self._used: set[str] = set()

    def check(self, step: int) -> None:
        """Check that step ``step`` and its scores compiled nothing.

        Raises:
            RecompilationError: they did, after the warm-up; names the programs.
        """
        found, self._found = self._found, []
        if step <= self._warm_up or not found:
            return
        what = (
            f"step {step} compiled {', '.join(dict.fromkeys(found))} again or late: the loop compiles everything up to "
            f"step {self._warm_up}, and a later compilation makes all devices wait"
        )
        if self._is_allowed:
            _log.warning("%s", what)
            return
        raise RecompilationError(
            f"{what}. This is a bug of clipa_eqx, or of the code that calls it: report it with the output of "
            "JAX_LOG_COMPILES=1. The steps since the last checkpoint are lost. To resume in spite of it, run the same "
            "command with --allow-recompilation"
        )

    @contextmanager
    def first_use(self, *names: str) -> Generator[None]:
        """Allow compilations in the ``with`` block if it is the first one for one of these names."""
        is_first = not self._used.issuperset(names)
        before = list(self._found)
        yield
        self._used.update(names)
        if is_first:
            self._found = before

    def _note(self, event: str, duration_secs: float, **about: Any) -> None:
        del duration_secs
        if event == _COMPILED and threading.get_ident() == self._thread:
            self._found.append(str(about.get("fun_name", "a program without a name")))

    def __enter__(self) -> "CompileWatch":
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)
