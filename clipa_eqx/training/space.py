"""Disk space: what a run will need before it starts, and the one message when a file cannot be written."""

import errno
import logging
import math
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from clipa_eqx.buckets.mirror import bucket_of
from clipa_eqx.errors import CheckpointError, ClipaError
from clipa_eqx.experiment import CheckpointConfig
from clipa_eqx.saved.kinds import CHECKPOINTS_NAME, FROZEN_NAME
from clipa_eqx.training.checkpoint_record import committed_steps
from clipa_eqx.training.retention import kept_steps
from clipa_eqx.training.state import TrainState

_log = logging.getLogger(__name__)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# The libraries that write arrays report the system's error as text.
_FULL_TEXTS = "|".join(re.escape(os.strerror(number)) for number in sorted(_FULL)) + "|quota exceeded"
# Metadata of a checkpoint, tokenizer and settings of a model folder, metrics.
_SMALL_FILES = 4 * 2**20


def tree_bytes(tree: Any) -> int:
    """Bytes of all leaves of a tree, which may be abstract."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def check_space(
    workdir: Path, abstract: TrainState, *, config: CheckpointConfig, total_steps: int, trained: Any = True
) -> None:
    """Compare the space that a run will need with what is free, before the first step. A run folder must exist.

    Nothing is compared for a folder in a bucket.

    A warning says that the disk will fill before all checkpoints are there that ``config`` keeps, unless it is freed.

    Args:
        trained: True, or a tree like the model of booleans: leaves that are False are stored once, not in each
            checkpoint.

    Raises:
        CheckpointError: the next checkpoint and the model at the end do not fit.
    """
    if bucket_of(workdir) is not None:
        return
    frozen = tree_bytes(eqx.filter(abstract.model, trained, inverse=True))
    checkpoint, model = tree_bytes(abstract) - frozen + _SMALL_FILES, _model_bytes(abstract)
    # A start without a checkpoint stores the frozen leaves again, also if an earlier one has stored some.
    is_stored = committed_steps(workdir / FROZEN_NAME) and committed_steps(workdir / CHECKPOINTS_NAME)
    once = 0 if is_stored else frozen
    free = shutil.disk_usage(workdir).free  # for this user
    saved = [one.name for one in _entries(workdir / CHECKPOINTS_NAME)]
    free += sum(_folder_bytes(workdir / CHECKPOINTS_NAME / name) for name in saved if not name.isdigit())
    saved = [name for name in saved if name.isdigit()]
    if str(total_steps) in saved:  # only the model is left to write
        checkpoint = 0
    if checkpoint + once + model > free:
        raise CheckpointError(
            f"the file system of run folder {workdir} has {shown(free)} free, but the next checkpoint takes "
            f"{shown(checkpoint)}{_with_frozen(once)} and the model at the end {shown(model)}; free "
            f"{shown(checkpoint + once + model - free)} more, or give a --workdir on another file system. No "
            "step was done"
        )
    missing = max(most_checkpoints(config, total_steps=total_steps) - len(saved), 1)
    needed = missing * checkpoint + once + model
    if needed > free:
        _log.warning(
            "the file system of %s has %s free, but this run takes up to %s more: %d checkpoints of %s (those that %s "
            "keep, and the one that is being written)%s, and a model of %s; free space, or keep fewer checkpoints",
            *(workdir, shown(free), shown(needed), missing, shown(checkpoint), _fields(config)),
            *(_with_frozen(once), shown(model)),
        )


def most_checkpoints(config: CheckpointConfig, *, total_steps: int) -> int:
    """The largest number of checkpoints that are there at a time: those that are kept, and the one being written.

    With ``keep_best`` it is an upper limit, because scores decide which steps are saved.

    >>> most_checkpoints(CheckpointConfig(every_steps=4, keep=2), total_steps=100)
    3
    >>> most_checkpoints(CheckpointConfig(every_steps=4, keep=2, keep_every_steps=20), total_steps=100)
    7
    >>> most_checkpoints(CheckpointConfig(every_steps=4, keep=2, keep_best="x"), total_steps=100)
    4
    """
    if config.keep_best is not None:
        every = config.keep_every_steps
        return config.keep + (0 if every is None else (total_steps - 1) // every) + 2
    before_the_last = range(config.every_steps, total_steps, config.every_steps)
    return len(kept_steps(before_the_last, config, best=None)) + 1


def _fields(config: CheckpointConfig) -> str:
    names = [name for name in ("keep", "keep_every_steps", "keep_best") if getattr(config, name) is not None]
    return " and ".join(f"checkpoint.{name}" for name in names)


@contextmanager
def explained(what: str, folder: Path, *, needed: int | None = None, then: str = "") -> Generator[None]:
    """Turn any error of the block, except those that are explained already, into one of a few lines.

    Args:
        what: what cannot be done, as the beginning of the message.
        folder: where it is written.
        needed: bytes that it takes, if known.
        then: what is lost and what is not.

    Raises:
        CheckpointError: the block failed.
    """
    try:
        yield
    except ClipaError:
        raise
    except Exception as error:
        raise write_error(what, error, folder=folder, needed=needed, then=then) from error


def write_error(
    what: str, error: Exception, *, folder: Path, needed: int | None = None, then: str = ""
) -> CheckpointError:
    """The error for something that could not be written; arguments as ``explained``."""
    parts = [f"{what}: {_reason(error)}"]
    if _is_full(error):
        size = f"{shown(needed)} are needed, and " if needed is not None else ""
        parts.append(f"{size}{_free(folder)}")
        advice = "Free space there (or raise the quota) and run the same command again"
    else:
        is_in_bucket = any(bucket_of(one) is not None for one in (folder, folder.parent))
        advice = f"Check {folder} and its {'bucket' if is_in_bucket else 'disk'}, and run the same command again"
    return CheckpointError(f"{'; '.join(parts)}. {f'{then} ' if then else ''}{advice}")


def shown(size: int) -> str:
    """A number of bytes for people.

    >>> shown(512), shown(5 * 2**20), shown(3 * 2**31)
    ('512 bytes', '5.0 MiB', '6.00 GiB')
    """
    if size < 2**10:
        return f"{size} bytes"
    if size < 2**20:
        return f"{size / 2**10:.1f} KiB"
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"


def _with_frozen(size: int) -> str:
    return f", the frozen leaves {shown(size)}" if size else ""


def _model_bytes(abstract: TrainState) -> int:
    return sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract.model)) + _SMALL_FILES


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _folder_bytes(folder: Path) -> int:
    """Bytes of an unfinished checkpoint, which Orbax removes before the first save."""
    return sum(one.stat().st_size for one in folder.rglob("*") if one.is_file()) if folder.is_dir() else 0


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return re.search(_FULL_TEXTS, str(error), re.IGNORECASE) is not None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if _is_full(error):
        found = re.search(_FULL_TEXTS, str(error), re.IGNORECASE)
        assert found is not None
        return found[0]
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0][:200] if first else 'no message'}"


def _free(folder: Path) -> str:
    existing = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    return f"the file system of {folder} has {shown(shutil.disk_usage(existing).free)} free for this user"
