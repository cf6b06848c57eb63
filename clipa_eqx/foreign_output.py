"""Lines that libraries print in our programs: their errors only. Our own lines say what the user needs to know.

Importing the library changes nothing; ``cli.set_up_logging`` calls this for programs.
"""

import logging
import os
import sys
import warnings

OURS = ("clipa_eqx", "conversion", "scripts", "quickstart", "configs", "benchmarks", "__main__")
"""First parts of the names of our loggers."""

_NEVER = ("absl", "asyncio", "fsspec", "gcsfs", "s3fs")
"""Loggers that repeat, with tracebacks, errors which are raised too (Orbax logs to absl, and to asyncio)."""


def quiet_libraries() -> None:
    """Silence warnings and native log lines of libraries, in this process and in those that it starts.

    What the user asked for stays: Python's warnings with ``-W`` or ``PYTHONWARNINGS``, native lines with
    ``TF_CPP_MIN_LOG_LEVEL``.
    """
    # Read by jaxlib and TensorFlow when they are loaded: their errors are raised as exceptions too.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        # Worker processes inherit these options, and so does the process of the standard library that frees shared
        # memory which killed programs leave, and warns of it.
        sys.warnoptions.append("ignore")


def is_shown(record: logging.LogRecord) -> bool:
    """Whether a log record is printed: all of ours, and the errors of libraries."""
    if record.name.startswith(OURS):
        return True
    return record.levelno >= logging.ERROR and not record.name.startswith(_NEVER)
