"""The leaves of a run that are never trained: stored once, in a folder next to the checkpoints.

They are stored as a checkpoint is, with a record and checksums, and count as stored once that is committed. Each
checkpoint of the run names the record by its hash, so other leaves are never read with it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from clipa_eqx.errors import CheckpointError
from clipa_eqx.experiment import CheckpointConfig
from clipa_eqx.saved.kinds import FROZEN_NAME
from clipa_eqx.training.checkpoint import Checkpoints, Frozen
from clipa_eqx.training.checkpoint_record import CheckpointRecord
from clipa_eqx.training.state import TrainState


def frozen_leaves(
    workdir: Path,
    state: TrainState,
    *,
    trained: Any,
    config: CheckpointConfig,
    resumed: CheckpointRecord | None,
    about: Mapping[str, Any],
) -> Frozen | None:
    """The frozen leaves of a run, stored if it starts; None if all leaves are in its checkpoints.

    All processes call it together. What an earlier start, which saved no checkpoint, stored is replaced.

    Args:
        state: the state of which they are stored.
        trained: True, or a tree like the model of booleans, False for a frozen leaf.
        config: whether they have checksums.
        resumed: record of the checkpoint that the state was read from, which names them; None for a first state.
        about: the record of the run.

    Raises:
        CheckpointError: they cannot be written, or are not those that the checkpoint names.
    """
    if trained is True or all(jax.tree.leaves(trained)):
        return None
    folder = workdir / FROZEN_NAME
    with Checkpoints(folder, keep=1, checksums=config.checksums) as store:
        if resumed is not None and resumed.frozen is not None:
            if resumed.frozen not in [store.record(one).sha256 for one in store.steps()]:
                raise CheckpointError(
                    f"{folder} does not have the frozen leaves of checkpoint {resumed.folder}; restore it from a copy, "
                    "or start again in a new --workdir"
                )
            sha256 = resumed.frozen
        else:
            latest = store.latest()
            step = 0 if latest is None else latest + 1
            frozen = eqx.filter(state.model, trained, inverse=True)
            store.save(TrainState(model=frozen, opt_state=(), step=state.step), step=step, about=about)
            store.wait()
            sha256 = store.record(step).sha256
    if sha256 is None:
        raise CheckpointError(f"{folder} has a record without a hash; start again in a new --workdir")
    return Frozen(trained, sha256)
