"""Training from a config to a model folder. This is the page to read first."""

import logging
import re
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from clipa_eqx.data.stream import BatchIterator
from clipa_eqx.durations import is_time
from clipa_eqx.errors import ConfigError
from clipa_eqx.evals.zero_shot import evaluate_zero_shot
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.models.clip import CLIP, abstract_clip
from clipa_eqx.optim import make_optimizer
from clipa_eqx.saved.model import save_model
from clipa_eqx.sharding import check_batch, make_mesh, put_global_batch, replicated
from clipa_eqx.tokenizer import Tokenizer
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.inputs import (
    Evaluation,
    eval_batches,
    load_tokenizer,
    open_sources,
    prepare_evaluations,
    train_batches,
)
from clipa_eqx.training.reporting import Reports, StepNumbers
from clipa_eqx.training.run_folder import CHECKPOINTS_NAME, MODEL_NAME, check_same_run, claim_on_all, run_record
from clipa_eqx.training.start import first_state
from clipa_eqx.training.state import TrainState, abstract_state
from clipa_eqx.training.step import make_train_step
from clipa_eqx.training.stopping import Interrupted, stop_requests
from clipa_eqx.trees import count_params

_log = logging.getLogger(__name__)


class TrainResult(NamedTuple):
    """Steps done, the last logged metrics, and where the model lies."""

    steps: int
    metrics: dict[str, Any]
    model_folder: Path


class _DeviceBatch(NamedTuple):
    arrays: dict[str, jax.Array]
    sample_id: np.ndarray
    counts: dict[str, jax.Array]
    starved_seconds: float


def train(config: ExperimentConfig, workdir: Path) -> TrainResult:
    """Train, or go on training, in ``workdir``; the same config gives the same run, however often it is interrupted.

    Raises:
        ClipaError: anything the caller can mend: config, mesh, data, work folder, non-finite loss.
        Interrupted: a signal asked for the end; the state is saved.
    """
    _check_local(workdir)
    mixture = open_sources(config)
    tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
    evaluations = prepare_evaluations(config, tokenizer)
    mesh = make_mesh(config.mesh)
    check_batch(config.batch_size, mesh)
    total_steps = config.duration.to_steps(batch_size=config.batch_size, data_size=len(mixture))
    model = abstract_clip(config.model)
    optimizer = make_optimizer(
        config.optim, model, total_steps=total_steps, batch_size=config.batch_size, data_size=len(mixture)
    )
    abstract = abstract_state(config.model, optimizer)
    record = run_record(config, [s.manifest for s in mixture.sources], vocab_sha256=tokenizer.vocab_sha256)
    claim_on_all(workdir, record)
    _log.info("%s: %s parameters, mesh %s", workdir, f"{count_params(model):,}", dict(mesh.shape))
    _log.info("%d steps of %d pairs from %d records", total_steps, config.batch_size, len(mixture))

    with ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        is_stop_requested = stack.enter_context(stop_requests())
        checkpoints = stack.enter_context(Checkpoints(workdir / CHECKPOINTS_NAME, keep=config.checkpoint.keep))
        start = checkpoints.latest() or 0
        bad_records = 0
        if start:
            check_same_run(checkpoints.about(start), record, where=f"checkpoint {start} of {workdir}")
            state = checkpoints.restore(abstract, mesh, step=start)
            bad_records = int(checkpoints.about(start).get("bad_records", 0))
            _log.info("going on after step %d", start)
        else:
            state = first_state(config, optimizer, abstract=abstract, mesh=mesh, vocab_sha256=tokenizer.vocab_sha256)
            start = int(state.step)
            if start >= total_steps:
                raise ConfigError(
                    f"init.source {config.init and config.init.source} is at step {start}, the run is over after "
                    f"{total_steps}; give a longer duration"
                )
        step_fn = _compile(config, optimizer, abstract, mesh)
        batches = stack.enter_context(train_batches(config, mixture, tokenizer, start_step=start))
        reports = stack.enter_context(
            Reports(
                config, workdir, start=start, total_steps=total_steps, data_size=len(mixture), bad_records=bad_records
            )
        )
        count = jax.jit(partial(jax.tree.map, jnp.sum), out_shardings=replicated(mesh))

        batch = _next_batch(batches, mesh, count) if start < total_steps else None
        pending: StepNumbers | None = None
        for step in range(start + 1, total_steps + 1):
            if batch is None:
                raise RuntimeError("the train stream ended; it never should")
            state, metrics = step_fn(state, batch.arrays)
            previous, pending = pending, StepNumbers(step, {**metrics, **batch.counts}, batch.sample_id)
            # While the devices work on this step, fetch the next batch and read the numbers of the step before.
            batch = _next_batch(batches, mesh, count, running=metrics["loss"]) if step < total_steps else None
            reports.throughput.step(starved_seconds=batch.starved_seconds if batch else 0.0)
            if previous is not None:
                reports.finish(previous, last_checkpoint=checkpoints.committed)

            due = [one for one in evaluations if _is_due(one, step, total_steps)]
            is_stop = is_stop_requested(step)
            is_saved = is_stop or is_time(
                step, every_steps=config.checkpoint.every_steps, total_steps=total_steps, first=False
            )
            if due or is_saved:
                with reports.throughput.paused(metrics):
                    scores = _score(config, due, state.model, mesh)
                # What a checkpoint stands for is on record before it: a resumed log has each step once.
                reports.finish(pending, last_checkpoint=checkpoints.committed, extra=scores)
                pending = None
                if is_saved:
                    with reports.throughput.paused(metrics):
                        checkpoints.save(state, step=step, about={**record, "bad_records": reports.bad_records})
            if is_stop and step < total_steps:
                checkpoints.wait()
                raise Interrupted(f"stopped after step {step} of {total_steps} and saved; the same command goes on")
        checkpoints.wait()
        folder = _save_final_model(config, workdir, state.model, tokenizer, record=record, steps=total_steps)
        return TrainResult(total_steps, reports.last, folder)


def _check_local(workdir: Path) -> None:
    # pathlib would make a local folder "gs:" of a bucket and say nothing.
    if re.match(r"[A-Za-z0-9+.-]+:/", str(workdir)):
        raise ConfigError(
            f"workdir is {workdir}: only local and mounted paths work yet; mount the bucket or copy later"
        )


def _compile(
    config: ExperimentConfig, optimizer: optax.GradientTransformation, abstract: TrainState, mesh: Mesh
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """The step, traced once and compiled before any data is read: shapes and memory are known up front."""
    step = make_train_step(
        optimizer,
        abstract=abstract,
        mesh=mesh,
        seed=config.seed,
        precision=config.precision,
        kind=config.loss,
        max_temperature=config.optim.max_temperature,
    )
    rows, size, length = config.batch_size, config.model.image.image_size, config.model.text.length
    batch = {
        "image": jax.ShapeDtypeStruct((rows, *size, 3), np.uint8),
        "tokens": jax.ShapeDtypeStruct((rows, length), np.int32),
    }
    since = time.perf_counter()
    compiled = step.lower(abstract, batch).compile()
    memory = compiled.memory_analysis()
    used = getattr(memory, "argument_size_in_bytes", 0), getattr(memory, "temp_size_in_bytes", 0)
    _log.info(
        "compiled in %.1f s; per device %.2f GiB of state and batch, %.2f GiB temporary",
        time.perf_counter() - since,
        *(size / 2**30 for size in used),
    )
    return compiled


def _next_batch(
    batches: BatchIterator,
    mesh: Mesh,
    count: Callable[[dict[str, jax.Array]], dict[str, jax.Array]],
    *,
    running: Any = None,
) -> _DeviceBatch:
    """The next batch on its way to the devices; ``running`` is an output of the step they work on meanwhile."""
    since = time.perf_counter()
    rows = next(batches)
    waited = time.perf_counter() - since
    # If the step was over when its successor's batch came, the devices stood idle for at most this wait.
    is_starved = running is not None and running.is_ready()
    arrays = put_global_batch({name: rows[name] for name in ("image", "tokens", "truncated", "substituted")}, mesh)
    # Counted on the devices, over the rows of all processes: the host waits for nothing.
    counts = count({name: arrays.pop(name) for name in ("truncated", "substituted")})
    return _DeviceBatch(arrays, rows["sample_id"], counts, waited if is_starved else 0.0)


def _is_due(evaluation: Evaluation, step: int, total_steps: int) -> bool:
    return step == total_steps or is_time(
        step, every_steps=evaluation.config.every_steps, total_steps=total_steps, first=False
    )


def _score(config: ExperimentConfig, due: list[Evaluation], model: CLIP, mesh: Mesh) -> dict[str, float]:
    scores: dict[str, float] = {}
    for one in due:
        with eval_batches(config, one) as batches:
            result = evaluate_zero_shot(model, one.task, batches, mesh=mesh)
        scores[f"zero_shot/{one.name}/top1"] = result.top1
        scores[f"zero_shot/{one.name}/top5"] = result.top5
        _log.info("zero-shot %s: top-1 %.2f %%, top-5 %.2f %%", one.name, 100 * result.top1, 100 * result.top5)
    return scores


def _save_final_model(
    config: ExperimentConfig,
    workdir: Path,
    model: CLIP,
    tokenizer: Tokenizer,
    *,
    record: Mapping[str, Any],
    steps: int,
) -> Path:
    folder = workdir / MODEL_NAME
    whole: Any = multihost_utils.process_allgather(model, tiled=True) if jax.process_count() > 1 else model
    if jax.process_index() == 0:
        provenance = {"source": "clipa_eqx training run", "steps": steps, "run": dict(record)}
        save_model(
            folder, whole, tokenizer=tokenizer, preprocess=config.eval_image, provenance=provenance, overwrite=True
        )
        _log.info("model written to %s", folder)
    return folder
