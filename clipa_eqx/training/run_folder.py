"""The run folder: which run it belongs to, and whether a config may resume it."""

import functools
import hashlib
import json
import logging
import shlex
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from clipa_eqx.buckets.mirror import SOURCE_FILE, refresh
from clipa_eqx.data.manifest import Manifest
from clipa_eqx.errors import CheckpointError, listed
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import TAG, flat, to_json, with_current_names
from clipa_eqx.locks.held import Lock
from clipa_eqx.replacing import is_temporary, write_text
from clipa_eqx.saved.kinds import CHECKPOINTS_NAME, CONFIG_FILE, FROZEN_NAME, METRICS_NAME, MODEL_NAME, kind_of, what_is
from clipa_eqx.surgery.operations import Lora
from clipa_eqx.training.checkpoint_record import newest_record
from clipa_eqx.training.run_lock import is_run_lock, run_lock
from clipa_eqx.training.space import write_error

_log = logging.getLogger(__name__)

# Fields that may change when a run is resumed: paths, mesh, algorithms of loss and attention, logging, checkpoints,
# evaluations and the average that they score, what happens at a fault. None of them changes a number that was computed
# before, or a later step except by rounding.
_FREE = (
    "mesh",
    "data/sources/*/folder",
    "data/vocab",
    "data/on_bad_record",
    "data/stream",
    "log_every_steps",
    "loss/algorithm",
    "loss/chunk",
    "micro_batch",
    "attention",
    "ema",
    "guard",
    "checkpoint",
    "wandb",
    "tensorboard",
    "on_non_finite",
    "watchdog",
    "flight_steps",
    "zero_shot",
    "retrieval",
    "contrastive",
    "few_shot",
    "linear_probe",
    "eval_image",
)


_RECORD_KEYS = {"version", "config", "data_sha256", "vocab_sha256"}


def run_record(config: ExperimentConfig, manifests: Sequence[Manifest], *, vocab_sha256: str) -> dict[str, Any]:
    """The record of a run in its folder and checkpoints: the config, and hashes of the data and the vocabulary."""
    return {
        "version": 1,
        "config": to_json(config),
        "data_sha256": data_identity(manifests),
        "vocab_sha256": vocab_sha256,
    }


def data_identity(manifests: Sequence[Manifest]) -> str:
    """A hash of the shards' hashes, source by source; it does not depend on the folders' paths."""
    sources = (manifest.table.joined_hashes() for manifest in manifests)
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()


def claim(workdir: Path, record: Mapping[str, Any]) -> None:
    """Make the folder belong to this run, or check that it does. A run without any step gives up its folder.

    Raises:
        CheckpointError: the folder holds another run (with every difference), a model, records, or something that is no
            run.
    """
    check_claim(workdir, record)
    if not _has_results(workdir):
        shutil.rmtree(workdir / FROZEN_NAME, ignore_errors=True)
    write_text(workdir / CONFIG_FILE, json.dumps(record, indent=1) + "\n")


def check_claim(workdir: Path, record: Mapping[str, Any]) -> None:
    """Check that ``claim`` would succeed, without writing anything; errors as there."""
    check_kind(workdir)
    if _has_record(workdir):
        found = read_record(workdir)
        if _has_results(workdir):
            check_same_run(found, record, where=f"run folder {workdir}", workdir=workdir)


def check_kind(workdir: Path) -> None:
    """Check that the folder is new, empty or a run folder, without writing anything.

    Raises:
        CheckpointError: it is a file, or a folder of something else.
    """
    if workdir.is_file():
        raise CheckpointError(f"run folder {workdir} is a file; give a new folder with --workdir")
    if kind_of(workdir) in ("model folder", "record folder", "folder of adapters"):
        raise CheckpointError(f"{what_is(workdir)}; give a new folder with --workdir")
    if _has_record(workdir) or not workdir.is_dir():
        return
    # A start that was killed while it wrote the record leaves an unfinished one, which the next removes.
    names = [entry.name for entry in workdir.iterdir()]
    if not all(is_temporary(name, CONFIG_FILE) or is_run_lock(name) or name == SOURCE_FILE for name in names):
        raise CheckpointError(
            f"run folder {workdir} is not empty and has no {CONFIG_FILE}; give a new folder with --workdir"
        )


@contextmanager
def locked_on_all(
    workdir: Path, record: Mapping[str, Any], *, check: Callable[[], None]
) -> Generator[Callable[[], None]]:
    """Lock the folder by process 0 until the block ends, and check that ``claim`` would succeed.

    Nothing but the lock is written. If nothing is written in the block either, a folder that was new is removed.

    Args:
        check: called by process 0; may raise CheckpointError.

    Yields:
        A function for every process to call after each step. It raises CheckpointError if another process has taken the
        folder since.

    Raises:
        CheckpointError: process 0 could not; on every process, so that none waits forever.
    """
    problem: CheckpointError | None = None
    lock: Lock | None = None
    with ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                check_kind(workdir)
                lock = stack.enter_context(run_lock(workdir))
                refresh(workdir)
                check_claim(workdir, record)
                check()
            except CheckpointError as error:
                problem = error
            except OSError as error:
                problem = write_error(f"run folder {workdir} cannot be written", error, folder=workdir)
        _raise_on_all(workdir, problem)
        yield lock.check if lock is not None else _nothing


def claim_on_all(workdir: Path, record: Mapping[str, Any]) -> None:
    """``claim`` by process 0. If it fails, every process raises an error instead of waiting forever."""
    problem: CheckpointError | None = None
    if jax.process_index() == 0:
        try:
            claim(workdir, record)
        except CheckpointError as error:
            problem = error
        except OSError as error:
            problem = write_error(f"run folder {workdir} cannot be written", error, folder=workdir)
    _raise_on_all(workdir, problem)


def _raise_on_all(workdir: Path, problem: CheckpointError | None) -> None:
    """Raise CheckpointError on every process if process 0 has a problem."""
    is_refused = problem is not None
    if jax.process_count() > 1:
        is_refused = bool(np.any(multihost_utils.process_allgather(np.asarray(is_refused))))
    if problem is not None:
        raise problem
    if is_refused:
        raise CheckpointError(f"process 0 refused run folder {workdir}; see its message for the reason")


def _nothing() -> None:
    """Do nothing: process 0 holds the lock."""


def read_record(workdir: Path) -> dict[str, Any]:
    """The record of a run folder; if its file is lost or damaged, that in its newest checkpoint, with a warning.

    Raises:
        CheckpointError: the folder has no record, or not that of a run.
    """
    path = workdir / CONFIG_FILE
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = _RECORD_KEYS - set(record)
        problem = f"it has no {', '.join(sorted(missing))}" if missing else ""
    except FileNotFoundError:
        record, problem = {}, "no such file"
    except (OSError, ValueError, TypeError, RecursionError) as error:
        record, problem = {}, str(error) or type(error).__name__
    if not problem:
        return record
    found = newest_record(workdir / CHECKPOINTS_NAME)
    if found is None or not set(found.about) >= _RECORD_KEYS:
        raise CheckpointError(f"{path} is not the record of a run: {problem}")
    _warn_once("%s is lost or damaged (%s); the record in %s is used", path, problem, found.folder)
    return {name: value for name, value in found.about.items() if name in _RECORD_KEYS}


@functools.cache
def _warn_once(*message: object) -> None:
    """Log a warning; one that a program has logged already is not repeated."""
    _log.warning(*message)


def check_same_run(ours: Mapping[str, Any], theirs: Mapping[str, Any], *, where: str, workdir: Path) -> None:
    """Compare two records, of which ``ours`` was found at ``where`` in the run folder ``workdir``.

    Raises:
        CheckpointError: they differ in fields that change what the run computes; the message lists all of them.
    """
    before, now = (dict(flat(with_current_names(record["config"]))) for record in (ours, theirs))
    for what, name in (("the data's hash", "data_sha256"), ("the vocabulary's hash", "vocab_sha256")):
        before[what], now[what] = ours[name], theirs[name]
    differing = [
        f"{name}: {before.get(name, 'absent')} there, {now.get(name, 'absent')} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
        and not any(fnmatchcase(name, f) or fnmatchcase(name, f"{f}/*") for f in _FREE)
    ]
    if differing:
        done = " --init.surgery none" if _surgery(ours) and _surgery(theirs) else ""
        raise CheckpointError(
            f"{where} is of another run; use its settings to resume it, or give a new --workdir (and "
            f"--init-from {shlex.quote(str(workdir))}{done} to start from its weights), {listed(differing)}"
        )


def _surgery(record: Mapping[str, Any]) -> bool:
    """Whether a run changes the weights that it starts from, except by adding factors, which its model has merged."""
    match record["config"]:
        case {"init": {"surgery": [*operations]}}:
            return any(one[TAG] != Lora.__name__ for one in operations)
        case _:
            return False


def _has_record(workdir: Path) -> bool:
    return (workdir / CONFIG_FILE).exists() or newest_record(workdir / CHECKPOINTS_NAME) is not None


def _has_results(workdir: Path) -> bool:
    log, checkpoints = workdir / METRICS_NAME, workdir / CHECKPOINTS_NAME
    is_logged = log.exists() and log.stat().st_size > 0
    return is_logged or (checkpoints.is_dir() and any(checkpoints.iterdir())) or (workdir / MODEL_NAME).exists()
