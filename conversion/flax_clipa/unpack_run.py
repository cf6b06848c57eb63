"""The training state of a run folder, unpacked into the files of a model folder for exporters."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from clipa_eqx.errors import CheckpointError
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import from_json
from clipa_eqx.models.clip import CLIPConfig, abstract_clip
from clipa_eqx.progress import progress_bar
from clipa_eqx.reference_chain import ChainShape, chain_shape
from clipa_eqx.saved.description import OPTIMIZER_FILE
from clipa_eqx.saved.kinds import CONFIG_FILE, MODEL_NAME, WEIGHTS_FILE
from clipa_eqx.saved.leaf_file import Leaf, LeafSlice, LeafWriter
from clipa_eqx.saved.leaf_shapes import leaf_shapes
from clipa_eqx.saved.optimizer_file import FIRST_SCHEDULE, Counts, Kind, write_optimizer_state
from clipa_eqx.surgery.operations import lora_of
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.restoring import read_newest
from clipa_eqx.training.run_folder import read_record

FLOAT32 = np.dtype(np.float32)


def unpack_run(workdir: Path, scratch: Path) -> CLIPConfig:
    """Write leaves and optimizer state of the newest valid checkpoint as files of a model folder to ``scratch``.

    Leaves are read one at a time, so memory must hold only the largest stacked leaf.

    Raises:
        CheckpointError: not a run folder, its checkpoint is missing or damaged, or the run trains some leaves only.
    """
    record = read_record(workdir)
    run = from_json(ExperimentConfig, record["config"], where=str(workdir / CONFIG_FILE))
    if run.trainable is not None or (run.init is not None and lora_of(run.init.surgery) is not None):
        raise CheckpointError(
            f"{workdir} is a run that trains some leaves only (trainable, or LoRA), whose state the reference could "
            f"not resume; export its model, {workdir / MODEL_NAME}, once the run has ended"
        )
    read_newest(workdir, lambda checkpoints, step: _unpack(checkpoints, step, run, scratch))
    return run.model


def _unpack(checkpoints: Checkpoints, step: int, run: ExperimentConfig, scratch: Path) -> None:
    for name in (WEIGHTS_FILE, OPTIMIZER_FILE):
        (scratch / name).unlink(missing_ok=True)  # the beginning of a newer checkpoint that is damaged
    paths = _optimizer_paths(checkpoints.record(step).leaves)
    shapes = leaf_shapes(run.model)
    with progress_bar(what="read", total=len(shapes) + len(paths.moments), unit="array") as bar:

        def read(path: str) -> np.ndarray:
            bar.update()
            return checkpoints.read_leaf(step, path)

        with LeafWriter(
            scratch / WEIGHTS_FILE, {name: Leaf(shape, FLOAT32) for name, shape in shapes.items()}
        ) as writer:
            for name in shapes:
                writer.write(name, read(f"model/{name}"))
        chain = chain_shape(run.optim, abstract_clip(run.model))
        updates, done = (int(checkpoints.read_leaf(step, path)) for path in (paths.updates, paths.updates_done))
        write_optimizer_state(
            scratch / OPTIMIZER_FILE,
            shapes,
            ((kind, LeafSlice(name, None, read(path))) for kind, name, path in paths.moments),
            counts=Counts(updates, done, _about(chain, examples=step * run.batch_size)),
            mu_dtype=np.dtype(ml_dtypes.bfloat16) if run.optim.mu_dtype == "bfloat16" else FLOAT32,
            frozen=chain.frozen,
        )


class _OptimizerPaths(NamedTuple):
    """Paths of the optimizer state in a checkpoint: (kind, leaf of the model, path) of each moment, and both counts."""

    moments: list[tuple[Kind, str, str]]
    updates: str
    updates_done: str


def _optimizer_paths(stored: Iterable[str]) -> _OptimizerPaths:
    stored = list(stored)
    kinds: tuple[Kind, ...] = ("mu", "nu")
    moments: list[tuple[Kind, str, str]] = [
        (kind, match[1], path)
        for kind in kinds
        for path in stored
        if (match := re.fullmatch(rf"opt_state/(?:.*/)?{kind}/(.+)", path))
    ]
    [updates] = [path for path in stored if re.fullmatch(r"opt_state/(.*/)?count", path)]
    [updates_done] = [path for path in stored if re.fullmatch(r"opt_state/(.*/)?updates_done", path)]
    return _OptimizerPaths(moments, updates, updates_done)


def _about(chain: ChainShape, *, examples: int) -> dict[str, Any]:
    """Positions of the schedules in the reference's chain, and its clock, of which only the examples are known here."""
    first = FIRST_SCHEDULE + chain.decays + chain.factors
    times: dict[str, list[Any]] = {f"accum_{what}_time": ["float64", 0.0] for what in ("program", "train", "pause")}
    return {
        "schedule_entries": list(range(first, first + chain.schedules)),
        "chrono": {**times, "accum_examples_seen": ["int64", examples]},
    }
