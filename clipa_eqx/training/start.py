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

from clipa_eqx.errors import CheckpointError
from clipa_eqx.experiment import ExperimentConfig, InitConfig
from clipa_eqx.json_config import from_json
from clipa_eqx.models.clip import CLIP, CLIPConfig
from clipa_eqx.saved.kinds import expect_kind
from clipa_eqx.saved.model import load_model
from clipa_eqx.sharding import sampling_shardings_for, shardings_for
from clipa_eqx.surgery import adopt
from clipa_eqx.training.imported_optimizer import continued_state
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
    source = load_source(config.init, mesh)
    if source.vocab_sha256 != vocab_sha256 and not any(
        re.fullmatch(pattern, "text/token/weight") for pattern in config.init.keep_initial
    ):
        raise CheckpointError(
            f"init.source {config.init.source} was trained with another vocabulary, which orders the token table "
            "otherwise; give its vocabulary as data.vocab, or add 'text/token/weight' to init.keep_initial"
        )
    model, report = adopt(
        source.model,
        config.model,
        fresh=model,
        resize_text=config.init.resize_text,
        resize_image=config.init.resize_image,
        keep_initial=config.init.keep_initial,
    )
    _log.info("initialized from %s: %s", config.init.source, report)
    if config.init.optimizer:
        return continued_state(model, Path(config.init.source), config.optim, abstract=abstract, mesh=mesh)
    model = jax.device_put(model, shardings.model)
    return jax.jit(lambda model: start_state(model, optimizer), out_shardings=shardings)(model)


class Source(NamedTuple):
    """Weights to start from, and the hash of the vocabulary of their token table."""

    model: CLIP
    vocab_sha256: str


def load_source(init: InitConfig, mesh: Mesh) -> Source:
    """The model of a run folder's newest valid checkpoint, or of a model folder."""
    source = Path(init.source)
    if expect_kind(source, "run folder", "model folder", where="init.source") == "model folder":
        loaded = load_model(source)
        return Source(loaded.model, loaded.tokenizer.tokenizer.vocab_sha256)
    record = read_record(source)
    config = from_json(CLIPConfig, record["config"]["model"])
    _, model = read_newest(source, lambda found, step: found.restore_model(config, mesh, step=step), what="init.source")
    return Source(model, record["vocab_sha256"])
