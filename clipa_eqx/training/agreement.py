"""Agreement of the processes of a run: if one of them refuses to start, all of them end with a message."""

from collections.abc import Generator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from clipa_eqx.errors import ClipaError, ConfigError


@contextmanager
def refused_together() -> Generator[None]:
    """End the ``with`` block with an error on every process if one of them raises a ClipaError in it.

    The processes may not communicate in the block: one that has left it would not answer.

    Raises:
        ClipaError: the error of this process.
        ConfigError: another process has one; the message names it.
    """
    problem: ClipaError | None = None
    try:
        yield
    except ClipaError as error:
        problem = error
    if jax.process_count() > 1:
        refused = np.atleast_1d(multihost_utils.process_allgather(np.asarray(problem is not None)))
        others = ", ".join(map(str, np.flatnonzero(refused)))
        if problem is None and others:
            raise ConfigError(f"process {others} cannot start the run; see its message for the reason")
    if problem is not None:
        raise problem
