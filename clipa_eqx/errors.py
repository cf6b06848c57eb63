"""Errors that a user can cause and fix; scripts turn them into one message and exit code 2."""

import shlex
from collections.abc import Sequence
from pathlib import Path

_MOST_LINES, _LONGEST_LINE = 100, 500


class ClipaError(Exception):
    """Base of all errors that the caller can fix. The message says what was wrong, where, and what to do."""


class ConfigError(ClipaError, ValueError):
    """A configuration contradicts itself, the data or the machine."""


class DataError(ClipaError, ValueError):
    """Records, images, captions or vocabularies are missing, damaged or of the wrong kind."""


class ShardingError(ClipaError, ValueError):
    """A mesh does not fit the devices, or its batch axes do not divide the batch."""


class CheckpointError(ClipaError, RuntimeError):
    """A checkpoint, run folder or model folder is absent, damaged, unfinished or of another run."""


class DamageError(CheckpointError):
    """The files of a checkpoint are incomplete or were changed after they were written; another one may be valid.

    Attributes:
        reason: the damage, without the name of the folder.
        folder: the checkpoint.
    """

    def __init__(self, reason: str, *, folder: Path) -> None:
        super().__init__(f"checkpoint {folder} is damaged: {reason}")
        self.reason: str = reason
        self.folder: Path = folder


class ConversionError(ClipaError, ValueError):
    """A foreign weight file does not have the expected layout; the message lists every problem."""


class NonFiniteError(ClipaError, RuntimeError):
    """The loss or a parameter became NaN or infinite; the message names step, samples and last checkpoint."""


class GuardError(ClipaError, RuntimeError):
    """The score that ``guard`` names fell too far below that before the first step; the run ended."""


class RecompilationError(ClipaError, RuntimeError):
    """The training loop compiled a program after its first steps; the message names it."""


class PeerError(ClipaError, RuntimeError):
    """Another process of the run failed; its message has the reason.

    Attributes:
        code: its exit code, with which this process ends too.
    """

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code: int = code


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a device, as JAX and Python report it."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    # Not by isinstance: programs that do not use JAX need not import it.
    return isinstance(error, MemoryError) or (
        bool(kinds & {"XlaRuntimeError", "JaxRuntimeError"}) and "RESOURCE_EXHAUSTED" in str(error)
    )


def pip_install(*packages: str) -> str:
    """The command that installs optional packages, for messages. It is right in a clone and for an installed wheel.

    >>> print(pip_install("wandb"))
    pip install wandb
    >>> print(pip_install("jax[tpu]"))
    pip install 'jax[tpu]'
    """
    return shlex.join(("pip", "install", *packages))


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1.

    >>> counted(1, "shard"), counted(1200, "record")
    ('1 shard', '1,200 records')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(problems: Sequence[str]) -> str:
    """Problems as the end of a message, one line each; very long lists and lines are shortened.

    >>> print(listed(["missing: a", "unused: b"]))
    2 problems:
      missing: a
      unused: b
    """
    lines = [line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} ..." for line in problems[:_MOST_LINES]]
    if len(problems) > _MOST_LINES:
        lines.append(f"... and {len(problems) - _MOST_LINES:,} more")
    return f"{counted(len(problems), 'problem')}:\n  " + "\n  ".join(lines)
