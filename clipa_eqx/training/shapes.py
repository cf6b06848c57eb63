"""The optimizer of a run and the shapes of its state, from the config alone."""

from collections.abc import Mapping
from typing import Any

import optax

from clipa_eqx.durations import RunLength
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import from_json
from clipa_eqx.models.clip import CLIP, CLIPConfig
from clipa_eqx.optim import make_optimizer, trained_leaves
from clipa_eqx.surgery.init_config import InitConfig, abstract_model
from clipa_eqx.training.state import TrainState, abstract_average, abstract_start


def optimizer_and_shapes(config: ExperimentConfig, run: RunLength) -> tuple[optax.GradientTransformation, TrainState]:
    """The optimizer of a run of this length, and its state without memory.

    Raises:
        ConfigError: rules or patterns that do not fit the model, or nothing left to train.
    """
    model = abstract_model(config.model, config.init)
    optimizer = make_optimizer(config.optim, model, run, trainable=config.trainable)
    return optimizer, abstract_average(abstract_start(model, optimizer), averaged_leaves(config))


def averaged_leaves(config: ExperimentConfig) -> Any:
    """A tree like the model of booleans: the leaves that are trained, which the run averages; None if it does not."""
    if config.ema is None:
        return None
    return trained_leaves(config.optim, abstract_model(config.model, config.init), trainable=config.trainable)


def model_of_record(record: Mapping[str, Any]) -> CLIP:
    """The model that a run trains, from its record, as shapes and dtypes.

    Raises:
        ConfigError: the record describes none.
    """
    model, init = (record["config"].get(name) for name in ("model", "init"))
    return abstract_model(from_json(CLIPConfig, model), None if init is None else from_json(InitConfig, init))


def trained_by(config: ExperimentConfig, model: CLIP) -> Any:
    """A tree like the model of booleans: what ``trainable`` leaves to train; True where it is not set."""
    if config.trainable is None:
        return True
    return trained_leaves(config.optim, model, trainable=config.trainable)
