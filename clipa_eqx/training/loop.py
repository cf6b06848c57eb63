"""Training from a config to a model folder. This is the page to read first."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from clipa_eqx.agreement import refused_together
from clipa_eqx.buckets.mirror import local_run
from clipa_eqx.device_memory import memory_errors
from clipa_eqx.devices import open_devices
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.models.clip import CLIP
from clipa_eqx.saved.kinds import CHECKPOINTS_NAME, MODEL_NAME
from clipa_eqx.saved.model import save_model
from clipa_eqx.saved.provenance import TRAINED_HERE, Provenance, Source
from clipa_eqx.sharding import rows_of_process
from clipa_eqx.surgery.low_rank import has_factors, merged
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.compiled_step import Compiler, compile_step
from clipa_eqx.training.device_batches import DeviceBatches
from clipa_eqx.training.final_adapters import save_final_adapters
from clipa_eqx.training.flight import FLIGHT_NAME, open_flight_record
from clipa_eqx.training.frozen_leaves import frozen_leaves
from clipa_eqx.training.guarding import Guard
from clipa_eqx.training.input_forecast import InputForecast
from clipa_eqx.training.inputs import PlannedEvaluation, evaluate_model, train_batches
from clipa_eqx.training.live_report import open_live_report
from clipa_eqx.training.memory import less_memory
from clipa_eqx.training.preparation import prepare
from clipa_eqx.training.profiling import ProfiledSteps, StepProfile
from clipa_eqx.training.read_ahead import ReadAhead
from clipa_eqx.training.recompilation import WARM_UP, CompileWatch
from clipa_eqx.training.reporting import Reports, StepNumbers
from clipa_eqx.training.restoring import resume
from clipa_eqx.training.retention import BestScore, kept_steps
from clipa_eqx.training.run_folder import claim_on_all, locked_on_all
from clipa_eqx.training.shapes import averaged_leaves, trained_by
from clipa_eqx.training.space import check_space, explained, tree_bytes
from clipa_eqx.training.start import first_state
from clipa_eqx.training.state import TrainState
from clipa_eqx.training.step_end import StepEnd, pending_numbers
from clipa_eqx.training.stopping import stop_requests
from clipa_eqx.training.uploads import uploads
from clipa_eqx.training.watchdog import Watchdog
from clipa_eqx.trees import count_params

_log = logging.getLogger(__name__)


class TrainResult(NamedTuple):
    """Result of a finished run.

    Attributes:
        steps: number of steps of the run.
        metrics: last logged metrics by name, as in ``metrics.jsonl``; empty if this call did no step.
        model_folder: path of the model folder; of one in a bucket, too, and ``load_model`` takes it.
    """

    steps: int
    metrics: dict[str, Any]
    model_folder: Path


def train(
    config: ExperimentConfig,
    workdir: Path | str,
    *,
    devices: Sequence[Any] | None = None,
    compiler: Compiler = compile_step,
    profile: ProfiledSteps | None = None,
    allow_recompilation: bool = False,
) -> TrainResult:
    """Train, or resume training, in ``workdir``; the same config gives the same run, however often it is interrupted.

    Args:
        config: everything that determines the run.
        workdir: the run folder, new or of the same run: a local path, ``gs://bucket/run`` or ``s3://bucket/run``.
        devices: the devices to train on; all by default.
        compiler: makes the step. Give another one to wrap the step of ``compile_step``, or to reuse a compiled step.
        profile: steps whose trace is written to the folder ``profile`` of the run folder.
        allow_recompilation: if the loop compiles something after its first steps, warn instead of ending the run.

    Raises:
        ClipaError: anything the caller can fix: config, mesh, data, run folder, non-finite loss.
        RecompilationError: the loop compiled something after its first ``config.log_every_steps`` (at least 10) steps.
        GuardError: the score of ``config.guard`` fell too far; the state is saved.
        Interrupted: a signal asked for the end; the state is saved.
    """
    with local_run(workdir) as folder:
        result = _train(
            config,
            folder,
            devices=devices,
            compiler=compiler,
            profile=profile,
            allow_recompilation=allow_recompilation,
        )
        return result._replace(model_folder=Path(workdir) / MODEL_NAME)


def _train(
    config: ExperimentConfig,
    workdir: Path,
    *,
    devices: Sequence[Any] | None,
    compiler: Compiler,
    profile: ProfiledSteps | None,
    allow_recompilation: bool,
) -> TrainResult:
    """``train`` in a local folder, which may be the copy of a folder in a bucket."""
    with ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(seconds=config.watchdog))
        if devices is None:
            devices = open_devices()
        stops = stack.enter_context(stop_requests())
        # Refusals come first: until claim_on_all nothing is written.
        watchdog.at("preparing the run")
        mixture, tokenizer, evaluations, mesh, run, optimizer, abstract, record = prepare(
            config, workdir, devices=devices
        )
        stops.check_start()
        total_steps = run.total_steps
        if profile is not None:
            profile.check(total_steps=total_steps)
        trained = trained_by(config, abstract.model)
        space = partial(
            check_space, workdir, abstract, config=config.checkpoint, total_steps=total_steps, trained=trained
        )
        stack.enter_context(memory_errors("training", advice=less_memory(config, devices=mesh.size)))
        check_lock = stack.enter_context(locked_on_all(workdir, record, check=space))
        stack.enter_context(jax.set_mesh(mesh))
        with watchdog.phase("compiling the step"), refused_together():
            step_fn = compiler(config, optimizer, abstract, mesh)
        stops.check_start()
        claim_on_all(workdir, record)
        upload = stack.enter_context(uploads(workdir, check_lock=check_lock))
        watchdog.folder, watchdog.write = workdir / FLIGHT_NAME, lambda _: upload.last_words()
        best = BestScore(config.checkpoint.keep_best)
        checkpoints = stack.enter_context(
            Checkpoints(
                workdir / CHECKPOINTS_NAME,
                keep=lambda steps: kept_steps(steps, config.checkpoint, best=best.step),
                checksums=config.checkpoint.checksums,
            )
        )
        checkpoints.before_commit = upload.changed
        with watchdog.phase("restoring or making the first state"):
            resumed = resume(checkpoints, abstract, mesh, record, averaged=averaged_leaves(config))
            if resumed is not None:
                state, start = resumed.state, resumed.step
            else:
                vocab = tokenizer.vocab_sha256
                state = first_state(config, optimizer, abstract=abstract, mesh=mesh, vocab_sha256=vocab)
                start = int(state.step)
            is_resumed = resumed is not None
            found = checkpoints.record(start) if is_resumed else None
            checkpoints.frozen = frozen_leaves(
                workdir, state, trained=trained, config=config.checkpoint, resumed=found, about=record
            )
        about = resumed.about if resumed else {}
        best.resume(about)
        guard = Guard(config, workdir)
        if resumed is not None:
            guard.resume(about)
        stops.check_start()
        made = stack.enter_context(train_batches(config, mixture, tokenizer, start_step=start, mesh=mesh))
        rows = stack.enter_context(ReadAhead(made, most=total_steps - start))
        batches = DeviceBatches(rows, mesh)
        flight = stack.enter_context(open_flight_record(config, workdir, mesh))
        watchdog.write = lambda reason: (flight.write(reason), upload.last_words())
        page = partial(
            open_live_report,
            config=config,
            workdir=workdir,
            mixture=mixture,
            tokenizer=tokenizer,
            mesh=mesh,
            parameters=count_params(abstract.model),
            total_steps=total_steps,
        )
        resumed_numbers = pending_numbers(about, step=start)
        logged = start if resumed_numbers is None else start - 1
        reports = stack.enter_context(
            Reports(
                config,
                workdir,
                run,
                start=start,
                logged=logged,
                devices=mesh.size,
                before=about,
                flight=flight,
                page=page,
            )
        )
        traced = stack.enter_context(
            StepProfile(workdir, profile, start=start, throughput=reports.throughput, watchdog=watchdog)
        )
        # The numbers of the last step of a period are read one step later.
        warm_up = start + max(config.log_every_steps, WARM_UP) + 1
        compiles = stack.enter_context(CompileWatch(warm_up=warm_up, is_allowed=allow_recompilation))
        forecast = InputForecast(
            config,
            mixture,
            rows,
            local_rows=len(rows_of_process(config.batch_size, mesh)),
            is_resumed=is_resumed,
        )
        end_step = StepEnd(
            config=config,
            total_steps=total_steps,
            evaluations=evaluations,
            score=partial(_score, config, tokenizer=tokenizer, mesh=mesh),
            record=record,
            check_lock=check_lock,
            reports=reports,
            checkpoints=checkpoints,
            best=best,
            guard=guard,
            stops=stops,
            compiles=compiles,
            watchdog=watchdog,
        )

        if resumed is None:
            end_step.score_start(state)
        watchdog.at("waiting for the first batch")
        batch = batches.take() if start < total_steps else None
        stops.check_start()
        stops.has_begun = True
        reports.throughput.waited(batch.waited_seconds if batch else 0.0)
        if resumed_numbers is not None:  # the evaluations of this step were interrupted
            end_step(state, resumed_numbers)
        pending: StepNumbers | None = None
        for step in range(start + 1, total_steps + 1):
            assert batch is not None
            flight.started(step, batch.sample_id)
            traced.before(step, running=state.step)
            since = time.perf_counter()
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = step_fn(state, batch.arrays)
            forecast.clock.started(metrics["loss"], since=since)
            previous, pending = pending, StepNumbers(step, {**metrics, **batch.counts}, batch.sample_id)
            # While the devices work on this step, fetch the next batch and read the numbers of the previous step.
            watchdog.at(f"waiting for the batch of step {step + 1}")
            batch = batches.take(running=metrics["loss"]) if step < total_steps else None
            reports.throughput.waited(batch.waited_seconds if batch else 0.0)
            reports.throughput.starved(batch.starved_seconds if batch else 0.0)
            check_lock()
            checkpoints.check()
            watchdog.at(f"waiting for the numbers of step {step - 1 if previous else step}")
            if previous is not None:
                reports.finish(previous, last_checkpoint=checkpoints.last_saved)
                watchdog.stepping()
            traced.after(step, running=metrics["loss"])
            if end_step(state, pending):
                pending = None
                watchdog.stepping()
            forecast.print_once()
            compiles.check(step)
        watchdog.at("waiting for the last checkpoint")
        checkpoints.wait()
        check_lock()
        with watchdog.phase("writing the model"):
            folder = _save_final_model(config, workdir, state, tokenizer, record=record)
            upload.changed()
        if (summary := guard.summary()) is not None:
            _log.info("%s", summary)
        return TrainResult(total_steps, reports.last, folder)


def _score(
    config: ExperimentConfig, due: Sequence[PlannedEvaluation], model: CLIP, *, tokenizer: Tokenizer, mesh: Mesh
) -> dict[str, float]:
    scores: dict[str, float] = {}
    for one in due:
        batch_size = one.evaluation.config.batch_size
        flag = f"--{one.suite.replace('_', '-')}.{one.number}.batch-size"
        advice = (f"a smaller batch_size of the evaluation, such as {flag} {max(batch_size // 2, 1)}",)
        with memory_errors(f"scoring {one.name}", advice=advice):
            found = evaluate_model(config, one, model, tokenizer, mesh=mesh).scores()
        scores |= {f"{one.name}/{name}": value for name, value in found.items()}
        _log.info("%s: %s", one.name, ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
    return scores


def _save_final_model(
    config: ExperimentConfig,
    workdir: Path,
    state: TrainState,
    tokenizer: Tokenizer,
    *,
    record: Mapping[str, Any],
) -> Path:
    folder, steps, model = workdir / MODEL_NAME, int(state.step), state.averaged
    plain = merged(model)
    whole: Any = (model, plain)
    # All processes merge and gather. Process 0 alone, which writes, computes nothing on the devices of the mesh.
    if jax.process_count() > 1:
        both = whole if has_factors(model) else model
        gathered: Any = multihost_utils.process_allgather(both, tiled=True)
        whole = gathered if has_factors(model) else (gathered, gathered)
    average = {} if config.ema is None else {"decay": config.ema.decay, "warm_up": config.ema.warm_up}
    if state.ema is not None:
        average |= {"updates": int(state.ema.count)}
    if jax.process_index() == 0:
        provenance = Provenance(source=Source(name=TRAINED_HERE), steps=steps, average=average, run=record)
        what, kept = f"the model at the end, {folder}, cannot be written", f"Checkpoint {steps} holds the last step."
        model, plain = whole
        with explained(what, workdir, needed=tree_bytes(model), then=kept):
            save_final_adapters(config, workdir, model, provenance=provenance)
            save_model(
                folder, plain, tokenizer=tokenizer, preprocess=config.eval_image, provenance=provenance, overwrite=True
            )
        _log.info("model written to %s", folder)
    return folder
