"""Metrics for Weights & Biases, if the config asks for them."""

import hashlib
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clipa_eqx.errors import ConfigError, pip_install
from clipa_eqx.experiment import WandbConfig


def open_wandb(config: WandbConfig, workdir: Path) -> Callable[[int, Mapping[str, Any]], None]:
    """A function that sends the metrics of one step. A resumed run folder resumes the same wandb run.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        wandb: Any = importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError(f"wandb is asked for but not installed: {pip_install('wandb')}") from error
    run = wandb.init(
        project=config.project,
        entity=config.entity,
        name=config.name or workdir.name,
        id=f"{workdir.name}-{hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:8]}",
        resume="allow",
        mode="offline" if config.offline else "online",
        dir=str(workdir),
    )
    return lambda step, values: run.log(dict(values), step=step)
