"""Runs that score every kind of evaluation while they train, on sets of odd sizes."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.records import Record
from clipa_eqx.durations import Duration
from clipa_eqx.evals.contrastive import ContrastiveConfig
from clipa_eqx.evals.few_shot import FewShotConfig
from clipa_eqx.evals.linear_probe import LinearProbeConfig
from clipa_eqx.evals.retrieval import RetrievalConfig
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.experiment import CheckpointConfig, ExperimentConfig
from support import tiny_runs

NAMES = ("cat", "dog", "photo")
CAPTIONS = ("a cat", "the dog", "photo of a cat", "a photo", "dog")
SUITES = ("zero_shot", "retrieval", "contrastive", "few_shot", "linear_probe")


def write_set(
    folder: Path,
    *,
    first: int,
    count: int,
    names: Sequence[str] = NAMES,
    changes: Callable[[int], dict[str, Any]] = lambda i: {},
    **fields: Any,
) -> str:
    """Write noise images with labels 0, 1, 2, 0, ... and one to five captions, or with the given fields.

    ``changes`` gives other fields of a record by its number.
    """
    rows: list[Record] = []
    for i in range(count):
        usual = {"image": noise_png(first + i), "label": i % len(names), "captions": CAPTIONS[: 1 + i % 5]}
        rows.append(Record(**{"key": str(i), **usual, **fields, **changes(i)}))
    write_records(rows, folder, class_names=tuple(names))
    return str(folder)


def noise_png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_sets(folder: Path) -> None:
    """The sets of ``scored_run``: 11 images, 17 that classifiers are fitted to, and a set of a single image."""
    write_set(folder / "test", first=50, count=11)
    write_set(folder / "train", first=0, count=17)
    write_set(folder / "single", first=90, count=1)


def evaluations(folder: Path, *, every_steps: int | None = 2, batch_size: int = 5) -> dict[str, Any]:
    """Fields of a config with all kinds of evaluations on ``test``, and those without a classifier on ``single``."""
    test, train, single = (str(folder / name) for name in ("test", "train", "single"))
    common = {"every_steps": every_steps, "batch_size": batch_size}
    return {
        "zero_shot": tuple(ZeroShotConfig(data=data, templates="class_name_only", **common) for data in (test, single)),
        "retrieval": tuple(RetrievalConfig(data=data, **common) for data in (test, single)),
        "contrastive": tuple(ContrastiveConfig(data=data, **common) for data in (test, single)),
        "few_shot": (FewShotConfig(data=test, train=train, shots=(1, 3), seeds=2, **common),),
        "linear_probe": (LinearProbeConfig(data=test, train=train, strengths=(0.1, 10.0), **common),),
    }


def scored_run(folder: Path, *, steps: int = 4, **fields: Any) -> ExperimentConfig:
    """A run of a few steps with ``evaluations``, and a checkpoint after step 3."""
    chosen = {
        "duration": Duration(steps=steps),
        "checkpoint": CheckpointConfig(every_steps=3),
        "log_every_steps": 100,
        **evaluations(folder),
    }
    return tiny_runs.run_config(**{**chosen, **fields})


def scores_of(line: dict[str, Any]) -> dict[str, float]:
    """The scores in a line of the metric log, by name."""
    return {name: value for name, value in line.items() if name.split("/")[0] in SUITES}
