"""The newest checkpoint that is not damaged: to resume a run, and to read the model of a run folder."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from clipa_eqx.agreement import refused_together
from clipa_eqx.errors import CheckpointError, DamageError, listed
from clipa_eqx.saved.kinds import CHECKPOINTS_NAME
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.damage import read_intact
from clipa_eqx.training.run_folder import check_same_run
from clipa_eqx.training.state import TrainState, start_average

_log = logging.getLogger(__name__)

T = TypeVar("T")

DAMAGED_NAME = "damaged_checkpoints"
"""Folder in a run folder for checkpoints that are out of the way. Nothing reads it."""


class Resumed(NamedTuple):
    """The state that a run resumes from, and what the checkpoint records about the run."""

    state: TrainState
    step: int
    about: dict[str, Any]


def resume(
    checkpoints: Checkpoints, abstract: TrainState, mesh: Mesh, record: dict[str, Any], *, averaged: Any = None
) -> Resumed | None:
    """The newest state that is not damaged; None if nothing was saved yet. Damaged ones are moved out of the way.

    If the run averages its parameters and the checkpoint has no average, it starts as the parameters there.

    Args:
        checkpoints: those of the run.
        abstract: shapes and dtypes of the state.
        mesh: where it is placed.
        record: the record of the run.
        averaged: leaves that have an average, as ``averaged_leaves`` gives them.

    Raises:
        CheckpointError: checkpoints are of another run, architecture or optimizer; or all of them are damaged, which
            moves none.
    """

    def read(step: int) -> Resumed:
        folder = checkpoints.folder / str(step)
        about = read_intact(lambda: checkpoints.record(step), folder=folder).about
        run_folder = checkpoints.folder.parent
        check_same_run(about, record, where=f"checkpoint {step} of {run_folder}", workdir=run_folder)
        return Resumed(checkpoints.restore(abstract, mesh, step=step), step, about)

    found, damaged = _newest(checkpoints, read)
    for step, error in damaged.items():
        place = _set_aside(checkpoints, step)
        _log.warning("%s; it is now %s, which may be deleted", error, place)
    if found is None:
        return None
    _log.info("resuming after step %d, from a checkpoint that %s", found.step, checkpoints.known(found.step))
    if averaged is not None and found.state.ema is None:
        _log.warning(
            "checkpoint %d has no average of the parameters: it starts here, as the parameters of this step", found.step
        )
        return found._replace(state=start_average(found.state, averaged, mesh))
    if averaged is None and any(path.startswith("ema/") for path in checkpoints.record(found.step).leaves):
        _log.warning(
            "checkpoint %d has an average of the parameters, which is left out: from here on, scores and the model at "
            "the end are those of the parameters themselves. To keep it, stop and set ema as before",
            found.step,
        )
    return found


def read_newest(
    run: Path, read: Callable[[Checkpoints, int], T], *, what: str = "run folder", verify: bool = True
) -> tuple[int, T]:
    """The newest step of a run folder that is not damaged, and what ``read`` gives for it. No file is changed.

    Raises:
        CheckpointError: there is no committed checkpoint yet, or all of them are damaged.
    """
    if (run / CHECKPOINTS_NAME).is_dir():  # also in the copy of a folder in a bucket
        with Checkpoints(run / CHECKPOINTS_NAME, keep=None, checksums=verify) as checkpoints:
            found, damaged = _newest(checkpoints, lambda step: (step, read(checkpoints, step)))
            for error in damaged.values():
                _log.warning("%s; step %d is taken instead", error, found[0] if found else -1)
            if found is not None:
                return found
    raise CheckpointError(f"{what} {run} has no committed checkpoint yet; train it further")


def _newest(checkpoints: Checkpoints, read: Callable[[int], T]) -> tuple[T | None, dict[int, DamageError]]:
    damaged: dict[int, DamageError] = {}
    while left := [step for step in checkpoints.steps() if step not in damaged]:
        step = left[-1]
        try:
            return read(step), damaged
        except DamageError as error:
            # A run that trains meanwhile deletes old checkpoints, and then has newer ones.
            if step in checkpoints.steps():
                damaged[step] = error
    if damaged:
        reasons = [f"{step}: {error.reason}" for step, error in damaged.items()]
        raise CheckpointError(
            f"all checkpoints in {checkpoints.folder} are damaged; restore one of them from a copy, or move that "
            f"folder away to start from the first step, {listed(reasons)}"
        )
    return None, damaged


def _set_aside(checkpoints: Checkpoints, step: int) -> Path | str:
    """Move a checkpoint to ``damaged_checkpoints``, so that its step can be saved again; returns its new place."""
    here, folder = checkpoints.folder / str(step), checkpoints.folder.with_name(DAMAGED_NAME)
    names = [str(step), *(f"{step}-{again}" for again in range(2, 1000))]
    place = next(folder / name for name in names if not (folder / name).exists())
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"name of damaged checkpoint {step}")
    moved: str | None = None
    with refused_together():
        if jax.process_index() == 0:
            try:
                moved = checkpoints.set_aside(step, DAMAGED_NAME)
                if moved is None:
                    folder.mkdir(exist_ok=True)
                    here.rename(place)
            except OSError as error:
                raise CheckpointError(
                    f"{here} is damaged and cannot be moved to {place} ({error}); move it away"
                ) from error
    checkpoints.reload()
    return moved or place
