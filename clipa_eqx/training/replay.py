"""The replay of one step of a run on a CPU: the same numbers again, and the rows and leaves that are not finite."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from clipa_eqx.data.mixture import Mixture
from clipa_eqx.durations import RunLength
from clipa_eqx.errors import CheckpointError, ConfigError, DamageError, DataError
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.models.clip import CLIP
from clipa_eqx.precision import Precision
from clipa_eqx.saved.kinds import CHECKPOINTS_NAME, METRICS_NAME
from clipa_eqx.sharding import make_mesh
from clipa_eqx.surgery.init_config import abstract_model
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.checkpoint_record import committed_steps
from clipa_eqx.training.compiled_step import Compiler, compile_step
from clipa_eqx.training.device_batches import DeviceBatch, DeviceBatches
from clipa_eqx.training.flight import FLIGHT_NAME, bits, recorded_steps
from clipa_eqx.training.gradients import batch_rows, embed_rows
from clipa_eqx.training.inputs import open_sources, train_batches
from clipa_eqx.training.metrics import read_metrics, to_host
from clipa_eqx.training.run_folder import check_same_run, run_record
from clipa_eqx.training.shapes import averaged_leaves, optimizer_and_shapes
from clipa_eqx.training.start import first_state
from clipa_eqx.training.state import TrainState, abstract_start, start_average
from clipa_eqx.training.step import step_key
from clipa_eqx.trees import leaves_by_path

ROUNDING = 1e-3
"""Largest relative difference of loss and gradient norm that another mesh or machine explains."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row of a batch with an embedding that is not finite.

    Attributes:
        row: its number in the global batch.
        sample_id: the record, as in the flight record.
        place: shard and position of the record, and its key.
        towers: those whose embedding is not finite.
    """

    row: int
    sample_id: int
    place: str
    towers: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Replayed:
    """A step that was computed again.

    Attributes:
        start: the step of the state that the replay began with; 0 for the first state.
        values: the metrics of the step.
        recorded: those that the run wrote, from the flight record or the log; empty if it wrote none.
        recorded_bits: bits of the recorded numbers that are not finite, where the flight record has them.
        same_samples: whether the rows are those of the flight record; None if it has no record of the step.
        bad_rows: rows with embeddings that are not finite.
        bad_leaves: leaves whose gradient is not finite, in the order of leaf paths.
    """

    step: int
    start: int
    values: Mapping[str, Any]
    recorded: Mapping[str, Any]
    recorded_bits: Mapping[str, str]
    same_samples: bool | None
    bad_rows: tuple[BadRow, ...]
    bad_leaves: tuple[str, ...]

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are finite."""
        return math.isfinite(self.values["loss"]) and math.isfinite(self.values["grad_norm"])

    @property
    def is_equal(self) -> bool:
        """Whether all numbers that were recorded have the same bits again."""
        return all(self.equals(name) for name in self.recorded)

    def equals(self, name: str) -> bool:
        """Whether a recorded number has the same bits again. Of NaNs in the log alone, the bits are not known."""
        new, old = self.values[name], self.recorded[name]
        if name in self.recorded_bits:
            return bits({name: new}).get(name) == self.recorded_bits[name]
        return bool(np.array_equal(np.asarray(new), np.asarray(old), equal_nan=True))

    @property
    def is_reproduced(self) -> bool:
        """Whether samples, loss and gradient norm are those recorded, up to rounding."""
        pairs = [(self.values[name], self.recorded[name]) for name in ("loss", "grad_norm") if name in self.recorded]
        return self.same_samples is not False and all(_is_close(new, old) for new, old in pairs)


def replay(
    config: ExperimentConfig,
    run: Path,
    step: int,
    *,
    record: Mapping[str, Any],
    devices: Sequence[Any],
    is_from_start: bool = False,
    compiler: Compiler = compile_step,
) -> Replayed:
    """Compute a step of a run again, from the newest valid checkpoint before it. No file of the run is changed.

    Args:
        config: that of the run; mesh, folders and micro-batch may differ.
        run: the run folder.
        step: the number of the step, as in the log.
        record: the record of the run.
        devices: devices to compute on.
        is_from_start: begin with the first state where no checkpoint is old enough.
        compiler: makes the step.

    Raises:
        CheckpointError: no state before the step is left.
        ConfigError: the run has no such step, or the config does not fit.
        DataError: a record is damaged, or the data are not those of the run.
    """
    config = dataclasses.replace(config, attention="auto")  # the run's devices may have had other kernels
    mesh = make_mesh(config.mesh, devices=devices)
    mixture = open_sources(config)
    tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
    length = RunLength.of(config.duration, batch_size=config.batch_size, data_size=len(mixture))
    if not 1 <= step <= length.total_steps:
        raise ConfigError(f"the run has no step {step}; it has steps 1 to {length.total_steps}")
    now = run_record(config, [one.manifest for one in mixture.sources], vocab_sha256=tokenizer.vocab_sha256)
    check_same_run(record, now, where=f"run folder {run}", workdir=run)
    optimizer, abstract = optimizer_and_shapes(config, length)
    recorded, recorded_bits, ids = _recorded(run, step)
    with jax.set_mesh(mesh):
        vocab = tokenizer.vocab_sha256
        total_steps = length.total_steps
        state = _restored(run, step, abstract, mesh, is_from_start=is_from_start, total_steps=total_steps)
        if state is None:
            state = first_state(config, optimizer, abstract=abstract, mesh=mesh, vocab_sha256=vocab)
        if state.ema is None:  # the run had none at that checkpoint
            state = start_average(state, averaged_leaves(config), mesh)
        start = int(state.step)
        if start >= step:
            raise ConfigError(f"the run took over the state of step {start}; it has steps {start + 1} and later")
        step_fn = compiler(config, optimizer, abstract, mesh)
        with train_batches(config, mixture, tokenizer, start_step=start, mesh=mesh) as rows:
            batches = DeviceBatches(rows, mesh)
            for number in range(start + 1, step):
                state, metrics = step_fn(state, batches.take().arrays)
                _log.info("step %d of %d: loss %.6g", number, step, float(metrics["loss"]))
            batch = batches.take()
        model: CLIP = jax.tree.map(jnp.copy, state.model)
        _, metrics = step_fn(state, batch.arrays)
        values = to_host(metrics)
        key = step_key(config.seed, step - 1)
        bad_rows = _bad_rows(model, batch, key, precision=config.precision, mixture=mixture)
        is_finite = math.isfinite(values["grad_norm"])
        bad_leaves = () if is_finite else _bad_leaves(config, model, batch, mesh, step=step)
    return Replayed(
        step=step,
        start=start,
        values=values,
        recorded={name: value for name, value in recorded.items() if name in values},
        recorded_bits=recorded_bits,
        same_samples=None if ids is None else ids == set(batch.sample_id.tolist()),
        bad_rows=bad_rows,
        bad_leaves=bad_leaves,
    )


def _is_close(new: float, old: float) -> bool:
    if not (math.isfinite(new) and math.isfinite(old)):
        return math.isfinite(new) == math.isfinite(old)
    return math.isclose(new, old, rel_tol=ROUNDING, abs_tol=1e-6)


def _recorded(run: Path, step: int) -> tuple[dict[str, Any], dict[str, str], set[int] | None]:
    """The numbers of a step, their bits, and the samples of all processes if the flight record is complete."""
    lines = recorded_steps(run / FLIGHT_NAME).get(step, [])
    finished = next((line for line in lines if line["is_finished"]), None)
    is_complete = bool(lines) and len(lines) == lines[0]["processes"]
    ids = {one for line in lines for one in line["sample_id"]} if is_complete else None
    if finished is not None:
        return finished, finished["bits"], ids
    logged = [line for line in read_metrics(run / METRICS_NAME) if line["step"] == step]
    return (logged[-1] if logged else {}), {}, ids


def _restored(
    run: Path, step: int, abstract: TrainState, mesh: Mesh, *, is_from_start: bool, total_steps: int
) -> TrainState | None:
    """The newest valid state before a step; None for the first state of the run."""
    saved = committed_steps(run / CHECKPOINTS_NAME)
    earlier = [one for one in saved if one < step]
    if earlier:
        with Checkpoints(run / CHECKPOINTS_NAME, keep=None) as checkpoints:
            for one in reversed(earlier):
                try:
                    return checkpoints.restore(abstract, mesh, step=one)
                except DamageError as error:
                    _log.warning("%s; an earlier one is taken", error)
    if saved and not is_from_start:
        later = f"; steps {min(saved) + 1} and later can be replayed" if min(saved) < total_steps else ""
        raise CheckpointError(
            f"{run} has no checkpoint from before step {step}{later}. "
            f"Compute the {step} steps from the first state with --from-start. Next time keep more checkpoints: "
            "--checkpoint.keep N, or --checkpoint.keep-every-steps N keeps some of them for ever"
        )
    return None


def _bad_rows(
    model: CLIP, batch: DeviceBatch, key: Array, *, precision: Precision, mixture: Mixture
) -> tuple[BadRow, ...]:
    @jax.jit
    def finite(model: CLIP, arrays: Mapping[str, Array]) -> tuple[Bool[Array, " batch"], Bool[Array, " batch"]]:
        rows = batch_rows(arrays["image"], arrays["tokens"], key=key)
        image, text = embed_rows(model, rows, precision=precision)
        return _finite_rows(image), _finite_rows(text)

    good = dict(zip(("image", "text"), jax.device_get(finite(model, batch.arrays)), strict=True))
    rows = np.flatnonzero(~(good["image"] & good["text"]))
    return tuple(
        BadRow(
            row=int(row),
            sample_id=int(batch.sample_id[row]),
            place=_place(mixture, int(batch.sample_id[row])),
            towers=tuple(tower for tower, is_good in good.items() if not is_good[row]),
        )
        for row in rows
    )


def _finite_rows(rows: Float[Array, "batch dim"]) -> Bool[Array, " batch"]:
    # Squared lengths, because normalization to unit length divides by them.
    return jnp.isfinite(jnp.sum(jnp.square(rows.astype(jnp.float32)), axis=1))


def _place(mixture: Mixture, sample_id: int) -> str:
    found = mixture.read([sample_id], on_shard=lambda _: None)
    record = next(iter(found))
    key = "unreadable" if isinstance(record, DataError) else f"key {record.key!r}"
    return f"{mixture.describe(sample_id)}, {key}"


def _bad_leaves(config: ExperimentConfig, model: CLIP, batch: DeviceBatch, mesh: Mesh, *, step: int) -> tuple[str, ...]:
    """Leaves with a gradient that is not finite, by the step itself with an optimizer that only keeps gradients."""

    def keep(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del state, params
        return jax.tree.map(jnp.zeros_like, updates), updates

    def init(params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params)

    keeper = optax.GradientTransformation(init, keep)
    abstract = abstract_start(abstract_model(config.model, config.init), keeper)
    # With the policy "skip", the step would not take over its optimizer's state.
    compiled = compile_step(dataclasses.replace(config, on_non_finite="stop", ema=None), keeper, abstract, mesh)
    counter: Int[Array, ""] = jnp.asarray(step - 1, jnp.int32)
    state = TrainState(model=model, opt_state=jax.jit(init)(model), step=counter)
    after, _ = compiled(state, batch.arrays)
    grads = leaves_by_path(after.opt_state)
    return tuple(path for path, leaf in grads.items() if not bool(jnp.isfinite(leaf).all()))
