"""Preparation of a run: what can be refused quickly is refused here, before anything is compiled or written."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from clipa_eqx.agreement import check_same_entries, refused_together
from clipa_eqx.data.mixture import Mixture
from clipa_eqx.devices import in_words, open_devices
from clipa_eqx.durations import RunLength
from clipa_eqx.errors import counted
from clipa_eqx.evals.code_version import code_digest
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import flat
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.progress import waiting
from clipa_eqx.saved.kinds import CHECKPOINTS_NAME
from clipa_eqx.sharding import check_batch, check_micro_batch, make_mesh
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from clipa_eqx.training.checkpoint_record import committed_steps
from clipa_eqx.training.guarding import check_guard
from clipa_eqx.training.inputs import (
    PlannedEvaluation,
    log_inputs,
    open_sources,
    prepare_evaluations,
    read_evaluations,
)
from clipa_eqx.training.run_folder import check_claim, run_record
from clipa_eqx.training.shapes import optimizer_and_shapes
from clipa_eqx.training.start import check_init
from clipa_eqx.training.state import TrainState
from clipa_eqx.training.tensorboard import check_tensorboard
from clipa_eqx.training.trackers import check_wandb
from clipa_eqx.trees import count_params

_log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """A run that is ready to start.

    Attributes:
        abstract: shapes and dtypes of its state.
        record: the record of the run.
    """

    mixture: Mixture
    tokenizer: Tokenizer
    evaluations: tuple[PlannedEvaluation, ...]
    mesh: Mesh
    run: RunLength
    optimizer: optax.GradientTransformation
    abstract: TrainState
    record: dict[str, Any]


def prepare(config: ExperimentConfig, workdir: Path, *, devices: Sequence[Any] | None) -> Prepared:
    """Check the config against machine, data, evaluations and run folder. Nothing is written.

    Raises:
        ClipaError: anything the caller can fix. If one process has such an error, all of them end.
    """
    chosen = open_devices() if devices is None else devices
    _log.info("training on %s", in_words(chosen))
    # First, because other code may communicate in another order.
    check_same_entries({"SHA-256 of clipa_eqx": code_digest(), "JAX": jax.__version__}, what="versions of the code")
    with refused_together():
        mesh = make_mesh(config.mesh, devices=chosen)
        check_batch(config.batch_size, mesh)
        if config.micro_batch is not None:
            check_micro_batch(config.micro_batch, mesh)
        if config.wandb is not None and jax.process_index() == 0:
            check_wandb(config.wandb)
        if config.tensorboard and jax.process_index() == 0:
            check_tensorboard()
        mixture = open_sources(config)
        with waiting("reading the vocabulary"):
            tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
        with waiting("preparing the evaluations"):
            evaluations = prepare_evaluations(config, tokenizer)
        run = RunLength.of(config.duration, batch_size=config.batch_size, data_size=len(mixture))
        optimizer, abstract = optimizer_and_shapes(config, run)
        record = run_record(config, [s.manifest for s in mixture.sources], vocab_sha256=tokenizer.vocab_sha256)
        if jax.process_index() == 0:
            check_claim(workdir, record)
        check_guard(config, workdir)
        if not committed_steps(workdir / CHECKPOINTS_NAME):  # a resumed run no longer needs what it started from
            check_init(config, abstract, vocab_sha256=tokenizer.vocab_sha256, total_steps=run.total_steps)
    _warn_of_uneven_heads(config.model, mesh)
    # Before the evaluations are read together, as many of them on each process.
    check_same_entries(dict(flat(record)), what="configs, data or vocabularies")
    evaluations = read_evaluations(config, evaluations, tokenizer)
    log_inputs(config, mixture, evaluations, tokenizer)
    _log.info("%s: %s parameters, mesh %s", workdir, f"{count_params(abstract.model):,}", dict(mesh.shape))
    steps, records = counted(run.total_steps, "step"), counted(len(mixture), "record")
    _log.info("%s of %s from %s", steps, counted(config.batch_size, "pair"), records)
    return Prepared(mixture, tokenizer, evaluations, mesh, run, optimizer, abstract, record)


def _warn_of_uneven_heads(model: CLIPConfig, mesh: Mesh) -> None:
    """Warn of a tensor axis that divides the heads or the hidden layers of a tower unevenly."""
    parts = mesh.shape["tensor"]
    for name, blocks in (("image", model.image.blocks), ("text", model.text.blocks)):
        for count, what in ((blocks.heads, "heads"), (blocks.mlp_dim, "values of the hidden layers")):
            if count % parts:
                _log.warning(
                    "mesh.tensor %d does not divide the %d %s of the %s tower: its devices exchange more, or do the "
                    "same work; use a divisor of %d",
                    *(parts, count, what, name, count),
                )
