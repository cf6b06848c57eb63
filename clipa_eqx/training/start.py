"""Where a run starts: at its own last checkpoint, at another run's or artefact's weights, or at random."""

import logging
from pathlib import Path

import jax
import jax.random as jr
import optax
from jax.sharding import Mesh

from clipa_eqx.artefact import load_model
from clipa_eqx.checkpoint import Checkpoints
from clipa_eqx.errors import CheckpointError
from clipa_eqx.experiment import ExperimentConfig, InitConfig
from clipa_eqx.json_config import from_json
from clipa_eqx.models.clip import CLIP, CLIPConfig
from clipa_eqx.sharding import shardings_for
from clipa_eqx.surgery import adopt
from clipa_eqx.training.run_folder import CHECKPOINTS_NAME, CONFIG_NAME, read_record
from clipa_eqx.training.state import TrainState, init_state, start_state

_log = logging.getLogger(__name__)

# Initial weights come from their own stream of the seed, so that they do not depend on what a step draws.
_INIT_STREAM = 0x1217


def first_state(
    config: ExperimentConfig, optimizer: optax.GradientTransformation, *, abstract: TrainState, mesh: Mesh
) -> TrainState:
    """The state of step 0, born where it will live.

    Raises:
        CheckpointError: the source of ``config.init`` is missing, damaged, or differs in what no surgery was named for.
    """
    key = jr.fold_in(jr.key(config.seed), _INIT_STREAM)
    shardings = shardings_for(abstract, mesh)
    if config.init is None:
        fresh = jax.jit(lambda key: init_state(config.model, optimizer, key=key), out_shardings=shardings)
        return fresh(key)
    model = jax.jit(lambda key: CLIP.init(config.model, key=key), out_shardings=shardings.model)(key)
    model, report = adopt(
        load_source(config.init, mesh),
        config.model,
        fresh=model,
        resize_text=config.init.resize_text,
        resize_image=config.init.resize_image,
        keep_initial=config.init.keep_initial,
    )
    _log.info("initialised from %s: %s", config.init.source, report)
    model = jax.device_put(model, shardings.model)
    return jax.jit(lambda model: start_state(model, optimizer), out_shardings=shardings)(model)


def load_source(init: InitConfig, mesh: Mesh) -> CLIP:
    """The model of a work folder's last committed checkpoint, or of an artefact."""
    source = Path(init.source)
    if (source / "model.safetensors").exists():
        return load_model(source).model
    if not (source / CONFIG_NAME).exists():
        raise CheckpointError(
            f"init.source {source} is neither a work folder (no {CONFIG_NAME}) nor an artefact (no model.safetensors)"
        )
    config = from_json(CLIPConfig, read_record(source)["config"]["model"])
    with Checkpoints(source / CHECKPOINTS_NAME, keep=1_000_000) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise CheckpointError(f"init.source {source} has no committed checkpoint yet")
        return checkpoints.restore_model(config, mesh, step=step)
