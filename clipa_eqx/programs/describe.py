"""Text that describes a config, a model folder, a run folder or a record folder, line by line."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jax.sharding import AbstractMesh

from clipa_eqx.buckets.mirror import shown
from clipa_eqx.data.manifest import read_manifest
from clipa_eqx.errors import counted
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import from_json, to_json
from clipa_eqx.models.clip import CLIP, abstract_clip
from clipa_eqx.saved.description import load_model_config
from clipa_eqx.saved.kinds import (
    CHECKPOINTS_NAME,
    CONFIG_FILE,
    METRICS_NAME,
    MODEL_NAME,
    PREPROCESS_FILE,
    PROVENANCE_FILE,
)
from clipa_eqx.sharding import AXES, MeshConfig, check_batch, describe_shardings
from clipa_eqx.surgery.init_config import abstract_model
from clipa_eqx.training.checkpoint_record import committed_steps, newest_record
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.run_folder import read_record
from clipa_eqx.training.shapes import trained_by
from clipa_eqx.trees import count_params, leaves_by_path

MeshSizes = tuple[int, int, int]
"""Devices along the axes data, fsdp and tensor."""


def describe_config(config: ExperimentConfig, mesh: MeshSizes | None) -> Iterator[str]:
    """A run's config as JSON, and the parameters of its model.

    Raises:
        ShardingError: the mesh does not divide the batch.
        ConfigError: the mesh cannot split the model.
    """
    if mesh is not None:
        check_batch(config.batch_size, _abstract_mesh(mesh))
    yield _json(to_json(config))
    yield from describe_parameters(abstract_model(config.model, config.init), mesh, trained=_trained(config))


def describe_model(folder: Path, mesh: MeshSizes | None) -> Iterator[str]:
    """A model folder: config, image preprocessing and provenance as JSON, and the parameters.

    Raises:
        CheckpointError: the folder is damaged or of a later version.
    """
    config = load_model_config(folder)
    yield _json(to_json(config))
    for name in (PREPROCESS_FILE, PROVENANCE_FILE):
        path = folder / name
        yield f"{name}: {path.read_text(encoding='utf-8').strip() if path.exists() else 'missing'}"
    yield from describe_parameters(abstract_clip(config), mesh)


def describe_run(folder: Path, mesh: MeshSizes | None) -> Iterator[str]:
    """A run folder: config as JSON, parameters, saved steps, last metrics, and where its model is.

    Raises:
        CheckpointError: the folder is damaged or of a later version.
    """
    record = read_record(folder)
    config = from_json(ExperimentConfig, record["config"], where=str(folder / CONFIG_FILE))
    yield _json(record["config"])
    yield from describe_parameters(abstract_model(config.model, config.init), mesh, trained=_trained(config))
    steps = committed_steps(folder / CHECKPOINTS_NAME)
    yield ""
    yield f"saved steps: {', '.join(map(str, steps)) or 'none yet'}"
    yield f"latest checkpoint: {steps[-1] if steps else 'none yet'}"
    yield from _average_and_guard(folder, config)
    lines = read_metrics(folder / METRICS_NAME) if (folder / METRICS_NAME).exists() else []
    yield f"last metrics: {f'(those per block are in {METRICS_NAME})' if lines else 'none yet'}"
    for name, value in (lines[-1] if lines else {}).items():
        if name != "time" and not isinstance(value, list):
            yield f"  {name}: {value:,.6g}" if isinstance(value, float) else f"  {name}: {value}"
    yield f"model: {f'{shown(folder)}/{MODEL_NAME}' if (folder / MODEL_NAME).exists() else 'not written yet'}"


def _average_and_guard(folder: Path, config: ExperimentConfig) -> Iterator[str]:
    """The average of a run and its guarded score, as the newest checkpoint has them; nothing for a run without."""
    found = newest_record(folder / CHECKPOINTS_NAME)
    if found is None:
        return
    averaged = sum(path.startswith("ema/model/") for path in found.leaves)
    if averaged:
        decay = "" if config.ema is None else f", decay {config.ema.decay:g}"
        yield f"average: of {averaged} leaves{decay}; it is the model of this run"
    guard = found.about.get("guard")
    if guard:
        last = "" if guard["last"] is None else f", {guard['last'][1]:.4f} after step {guard['last'][0]}"
        limit = "" if config.guard is None else f"; largest fall allowed {config.guard.largest_fall:g}"
        before = "not measured" if guard["before"] is None else f"{guard['before']:.4f}"
        yield f"guard: {guard['score']} {before} before the first step{last}{limit}"


def describe_records(folder: Path) -> Iterator[str]:
    """A record folder by its manifest: shards, rows, dropped rows, class names and facts about the conversion.

    Raises:
        DataError: the manifest is damaged or of a later version.
    """
    manifest = read_manifest(folder)
    if manifest.members:
        first, last = manifest.members[0].folder, manifest.members[-1].folder
        yield f"joined: {counted(len(manifest.members), 'record folder')}, from {first} to {last}"
    yield f"shards: {len(manifest.shards)}, {int(manifest.table.sizes.sum()):,} bytes"
    yield f"rows: {manifest.rows_read:,} read, {manifest.rows_written:,} written"
    for reason, count in manifest.rows_dropped.items():
        yield f"dropped: {count:,} {reason}"
    names = manifest.class_names
    yield "class names: none" if not names else f"class names: {len(names)}, from {names[0]!r} to {names[-1]!r}"
    for name, value in manifest.info.items():
        yield f"{name}: {value}"


def describe_parameters(
    model: CLIP, mesh: MeshSizes | None, *, trained: Mapping[str, bool] | None = None
) -> Iterator[str]:
    """A table of all parameters (path, shape, number of values and, with a mesh, how each is split), and their sums.

    Args:
        model: the model; its leaves may be abstract.
        mesh: sizes of the axes, or None.
        trained: whether each leaf is trained, by path; None if all are.

    Raises:
        ConfigError: the mesh cannot split the model.
    """
    splits = {} if mesh is None else _splits(model, mesh)
    states = {} if trained is None else {path: "trained" if one else "frozen" for path, one in trained.items()}
    rows = [("path", "shape", "values", *(("split",) if splits else ()), *(("state",) if states else ()))]
    for path, leaf in leaves_by_path(model).items():
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        more = (column[path] for column in (splits, states) if column)
        rows.append((path, shape, f"{math.prod(leaf.shape):,}", *more))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield ""
    for path, shape, values, *split in rows:
        yield "  ".join([path.ljust(widths[0]), shape.ljust(widths[1]), values.rjust(widths[2]), *split])
    yield ""
    for name, part in (("image", model.image), ("text", model.text), ("all", model)):
        yield f"parameters, {name}: {count_params(part):,}"
    if trained is not None:
        moving = [leaf for path, leaf in leaves_by_path(model).items() if trained[path]]
        yield f"parameters, trained: {count_params(moving):,}"


def _trained(config: ExperimentConfig) -> dict[str, bool] | None:
    """Whether each leaf of a run is trained, by path; None if ``trainable`` is not set."""
    if config.trainable is None:
        return None
    return leaves_by_path(trained_by(config, abstract_model(config.model, config.init)))


def _splits(model: CLIP, sizes: MeshSizes) -> dict[str, str]:
    found = describe_shardings(model, _abstract_mesh(sizes))
    return {path: ", ".join(str(axis or "-") for axis in spec) or "whole" for path, spec in found.items()}


def _abstract_mesh(sizes: MeshSizes) -> AbstractMesh:
    MeshConfig(**dict(zip(AXES, sizes, strict=True)))  # raises on sizes that do not work
    return AbstractMesh(sizes, AXES)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1)
