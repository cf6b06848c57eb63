"""The training state of a run folder, unpacked into the files of a model folder for exporters."""

import re
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from tqdm import tqdm

from clipa_eqx.errors import CheckpointError
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import from_json
from clipa_eqx.models.clip import CLIPConfig, abstract_clip
from clipa_eqx.reference_chain import chain_shape
from clipa_eqx.saved.description import OPTIMIZER_FILE
from clipa_eqx.saved.kinds import CHECKPOINTS_NAME, CONFIG_FILE, WEIGHTS_FILE
from clipa_eqx.saved.leaf_file import Leaf, LeafSlice, LeafWriter
from clipa_eqx.saved.leaf_shapes import leaf_shapes
from clipa_eqx.saved.optimizer_file import FIRST_SCHEDULE, Counts, Kind, write_optimizer_state
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.run_folder import read_record

FLOAT32 = np.dtype(np.float32)


def unpack_run(workdir: Path, scratch: Path) -> CLIPConfig:
    """Write leaves and optimizer state of the last committed checkpoint as files of a model folder to ``scratch``.

    Leaves are read one at a time, so memory must hold only the largest stacked leaf.

    Raises:
        CheckpointError: not a run folder, or its checkpoint is missing or damaged.
    """
    record = read_record(workdir)
    run = from_json(ExperimentConfig, record["config"], where=str(workdir / CONFIG_FILE))
    shapes = leaf_shapes(run.model)
    with Checkpoints(workdir / CHECKPOINTS_NAME, keep=None) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise CheckpointError(f"run folder {workdir} has no committed checkpoint yet")
        stored = checkpoints.leaves(step)
        paths = {
            kind: {m[1]: path for path in stored if (m := re.fullmatch(rf"opt_state/(?:.*/)?{kind}/(.+)", path))}
            for kind in ("mu", "nu")
        }
        [updates] = [path for path in stored if re.fullmatch(r"opt_state/(.*/)?count", path)]
        [done] = [path for path in stored if re.fullmatch(r"opt_state/(.*/)?updates_done", path)]
        bar = tqdm(total=len(shapes) + 2 * len(paths["mu"]), desc="read", unit="leaf", delay=2)
        weights = {name: Leaf(shape, FLOAT32) for name, shape in shapes.items()}
        with bar, LeafWriter(scratch / WEIGHTS_FILE, weights) as writer:
            for name in shapes:
                writer.write(name, checkpoints.read_leaf(step, f"model/{name}"))
                bar.update()
            chain = chain_shape(run.optim, abstract_clip(run.model))
            first = FIRST_SCHEDULE + chain.decays + chain.factors
            about = {
                "schedule_entries": list(range(first, first + chain.schedules)),
                # The reference's clock; only its number of examples is known here.
                "chrono": {
                    **{f"accum_{what}_time": ["float64", 0.0] for what in ("program", "train", "pause")},
                    "accum_examples_seen": ["int64", step * run.batch_size],
                },
            }

            def moments() -> Iterator[tuple[Kind, LeafSlice]]:
                kinds: tuple[Kind, ...] = ("mu", "nu")
                for kind in kinds:
                    for name, path in paths[kind].items():
                        yield kind, LeafSlice(name, None, checkpoints.read_leaf(step, path))
                        bar.update()

            write_optimizer_state(
                scratch / OPTIMIZER_FILE,
                shapes,
                moments(),
                counts=Counts(int(checkpoints.read_leaf(step, updates)), int(checkpoints.read_leaf(step, done)), about),
                mu_dtype=np.dtype(ml_dtypes.bfloat16) if run.optim.mu_dtype == "bfloat16" else FLOAT32,
                frozen=chain.frozen,
            )
    return run.model
