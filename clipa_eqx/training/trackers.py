"""Metrics for Weights & Biases, if the config asks for them."""

import hashlib
import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clipa_eqx.buckets.mirror import bucket_of, shown
from clipa_eqx.errors import ConfigError, pip_install
from clipa_eqx.experiment import WandbConfig


def check_wandb(config: WandbConfig) -> None:
    """Check that wandb can be used, before anything is computed: the package, and an account that the server knows.

    Offline, and with ``WANDB_MODE`` set to ``offline`` or ``disabled``, no account is needed.

    Raises:
        ConfigError: the package or the account is missing, or the server cannot be asked.
    """
    wandb = _package()
    if config.offline or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return
    try:
        # Older versions cannot check without asking the user for a key.
        can_check = "prompt" in inspect.signature(wandb.login).parameters
        is_known = wandb.login(prompt=False) if can_check else bool(wandb.api.api_key)
    except Exception as error:  # wandb has errors of its own, which differ between versions
        raise ConfigError(f"wandb cannot be used: {error}; fix that, or set --wandb.offline True") from error
    if not is_known:
        raise ConfigError(
            "wandb is asked for, but this machine has no API key: run `wandb login`, or set WANDB_API_KEY. Without an "
            "account set --wandb.offline True"
        )


def open_wandb(config: WandbConfig, workdir: Path) -> Callable[[int, Mapping[str, Any]], None]:
    """A function that sends the metrics of one step. A resumed run folder resumes the same wandb run.

    Raises:
        ConfigError: the package is not installed, or the run cannot be opened.
    """
    wandb = _package()
    try:
        run = _init(wandb, config, workdir)
    except Exception as error:  # wandb has errors of its own, which differ between versions
        raise ConfigError(
            f"the run cannot be opened in wandb: {error}; fix that, or set --wandb.offline True"
        ) from error
    return lambda step, values: run.log(dict(values), step=step)


def _init(wandb: Any, config: WandbConfig, workdir: Path) -> Any:
    # The local copy of a folder in a bucket has another path each time.
    address = shown(workdir) if bucket_of(workdir) else str(workdir.resolve())
    return wandb.init(
        project=config.project,
        entity=config.entity,
        name=config.name or workdir.name,
        id=f"{workdir.name}-{hashlib.sha256(address.encode()).hexdigest()[:8]}",
        resume="allow",
        mode="offline" if config.offline else None,  # None leaves the choice to WANDB_MODE
        dir=str(workdir),
    )


def _package() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError(f"wandb is asked for but not installed: {pip_install('wandb')}") from error
