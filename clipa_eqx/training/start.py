"""The first state of a run: random weights, or the weights of another run or of a model folder."""

import logging
import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.random as jr
import optax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from clipa_eqx.buckets.mirror import named
from clipa_eqx.errors import CheckpointError, ConfigError
from clipa_eqx.experiment import ExperimentConfig, InitConfig
from clipa_eqx.json_config import from_json
from clipa_eqx.models.clip import CLIP, CLIPConfig, abstract_clip
from clipa_eqx.saved.by_name import local_model
from clipa_eqx.saved.kinds import expect_kind
from clipa_eqx.saved.leaf_file import LeafReader
from clipa_eqx.saved.leaf_shapes import check_leaves
from clipa_eqx.saved.model import load_model
from clipa_eqx.saved.model_folder import open_model_folder
from clipa_eqx.sharding import sampling_shardings_for, shardings_for
from clipa_eqx.surgery.adoption import adopt
from clipa_eqx.training.imported_optimizer import check_optimizer, continued_state
from clipa_eqx.training.restoring import read_newest
from clipa_eqx.training.run_folder import read_record
from clipa_eqx.training.state import TrainState, start_state

_log = logging.getLogger(__name__)

# Each step folds its number into the seed's key, and no step reaches this number.
_INIT_STREAM = 2**32 - 1


def initial_key(seed: int) -> PRNGKeyArray:
    """The key of the initial weights, which no step of the run has (``step.step_key``)."""
    return jr.fold_in(jr.key(seed), _INIT_STREAM)


def first_state(
    config: ExperimentConfig,
    optimizer: optax.GradientTransformation,
    *,
    abstract: TrainState,
    mesh: Mesh,
    vocab_sha256: str,
) -> TrainState:
    """The first state of a run, placed on ``mesh``: that of step 0, or with ``init.optimizer`` a later one.

    Random weights are bit-equal on every mesh of one kind of device.

    Raises:
        CheckpointError: the source of ``config.init`` is missing or damaged, or differs from ``config.model`` in a way
            that no surgery is named for; with ``init.optimizer``, it has no optimizer state, or that of another
            optimizer.
    """
    key = initial_key(config.seed)
    shardings = shardings_for(abstract, mesh)
    sampling = sampling_shardings_for(abstract.model, mesh)

    def sample(key: PRNGKeyArray) -> CLIP:
        return jax.lax.with_sharding_constraint(CLIP.init(config.model, key=key), sampling)

    if config.init is None:
        return jax.jit(lambda key: start_state(sample(key), optimizer), out_shardings=shardings)(key)
    model = jax.jit(sample, out_shardings=shardings.model)(key)
    source = load_source(config.init, mesh, verify=config.checkpoint.checksums)
    _check_vocabulary(config.init, source.vocab_sha256, vocab_sha256)
    model, report = adopt(
        source.model,
        config.model,
        fresh=model,
        resize_text=config.init.resize_text,
        text_rows=config.init.text_rows,
        resize_image=config.init.resize_image,
        keep_initial=config.init.keep_initial,
    )
    _log.info("initialized from %s: %s", config.init.source, report)
    if config.init.optimizer:
        verify = config.checkpoint.checksums
        folder = local_model(config.init.source)
        return continued_state(model, folder, config.optim, abstract=abstract, mesh=mesh, verify=verify)
    model = jax.device_put(model, shardings.model)
    return jax.jit(lambda model: start_state(model, optimizer), out_shardings=shardings)(model)


def check_init(config: ExperimentConfig, abstract: TrainState, *, vocab_sha256: str, total_steps: int) -> None:
    """Check that ``first_state`` will find what it needs, from descriptions and shapes: no weights are read.

    Raises:
        CheckpointError: as for ``first_state``, except for damaged values.
        ConfigError: with ``init.optimizer``, the source is already at the end of the run.
    """
    init = config.init
    if init is None:
        return
    described = describe_source(init)
    _check_vocabulary(init, described.vocab_sha256, vocab_sha256)
    jax.eval_shape(
        lambda source, fresh: (
            adopt(
                source,
                config.model,
                fresh=fresh,
                resize_text=init.resize_text,
                text_rows=init.text_rows,
                resize_image=init.resize_image,
                keep_initial=init.keep_initial,
            ).model
        ),
        described.model,
        abstract.model,
    )
    if init.optimizer:
        step = check_optimizer(local_model(init.source), config.model, config.optim, abstract=abstract)
        if step >= total_steps:
            raise ConfigError(
                f"init.source {init.source} is at step {step}, the run is over after {total_steps}; give a longer "
                "duration"
            )


def _check_vocabulary(init: InitConfig, found: str, wanted: str) -> None:
    if found != wanted and not any(re.fullmatch(pattern, "text/token/weight") for pattern in init.keep_initial):
        raise CheckpointError(
            f"init.source {init.source} was trained with another vocabulary, which orders the token table "
            "otherwise; give its vocabulary as data.vocab, or add 'text/token/weight' to init.keep_initial"
        )


class Source(NamedTuple):
    """Weights to start from, and the hash of the vocabulary of their token table."""

    model: CLIP
    vocab_sha256: str


def describe_source(init: InitConfig) -> Source:
    """The model to start from as shapes and dtypes; its leaves have been compared with its config.

    Raises:
        CheckpointError: there is no such model, or its folder is damaged.
    """
    with named(init.source):
        return _describe(local_model(init.source))


def _describe(source: Path) -> Source:
    if expect_kind(source, "run folder", "model folder", where="init.source") == "model folder":
        opened = open_model_folder(source)
        with LeafReader(opened.weights) as file:
            check_leaves(file.leaves, opened.config, where=str(opened.weights))
        return Source(abstract_clip(opened.config), opened.tokenizer.vocab_sha256)
    record = read_record(source)
    read_newest(source, lambda checkpoints, step: checkpoints.record(step), what="init.source")
    return Source(abstract_clip(from_json(CLIPConfig, record["config"]["model"])), record["vocab_sha256"])


def load_source(init: InitConfig, mesh: Mesh, *, verify: bool = True) -> Source:
    """The model of a run folder's newest valid checkpoint, or of a model folder."""
    with named(init.source):
        return _load(local_model(init.source), mesh, verify=verify)


def _load(source: Path, mesh: Mesh, *, verify: bool) -> Source:
    if expect_kind(source, "run folder", "model folder", where="init.source") == "model folder":
        loaded = load_model(source, verify=verify)
        return Source(loaded.model, loaded.tokenizer.tokenizer.vocab_sha256)
    record = read_record(source)
    config = from_json(CLIPConfig, record["config"]["model"])
    _, model = read_newest(
        source, lambda found, step: found.restore_model(config, mesh, step=step), what="init.source", verify=verify
    )
    return Source(model, record["vocab_sha256"])
