"""A training run from the command line: its resolved config, and the training itself."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import jax

from clipa_eqx.buckets.bucket import address, bucket_at
from clipa_eqx.cli import INTERRUPTED, OK
from clipa_eqx.commands import command_line, next_lines
from clipa_eqx.config_files import apply_overrides, load_config
from clipa_eqx.errors import counted
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import to_json
from clipa_eqx.programs.connection import connect_processes
from clipa_eqx.programs.distributed import Processes
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.surgery.operations import flags_after
from clipa_eqx.training.loop import train
from clipa_eqx.training.profiling import ProfiledSteps
from clipa_eqx.training.stopping import Interrupted

__all__ = ["resolve_config", "start", "to_json"]

_log = logging.getLogger(__name__)


def resolve_config(
    path: Path | str,
    overrides: Sequence[str],
    *,
    program: str,
    program_flags: Sequence[str] = (),
    init_from: str | None = None,
) -> ExperimentConfig:
    """The config of a Python file, with ``init.source`` set to ``init_from`` and then changed by flags.

    Args:
        path: a Python file with ``config() -> ExperimentConfig``.
        overrides: flags such as ``--optim.peak-lr 4e-4``; ``--help`` prints all of them and exits with 0.
        program: what that help calls the program.
        program_flags: flags of the program itself, which a wrong flag may have meant.

    Raises:
        ConfigError: the file or a flag is wrong; the message says which.
    """
    config = load_config(path)
    if init_from is not None:
        # Before the flags, so that --init.optimizer works where the file sets no init.
        init = config.init or InitConfig(source=init_from)
        config = dataclasses.replace(config, init=dataclasses.replace(init, source=init_from))
    return apply_overrides(config, overrides, program=program, program_flags=program_flags)


def start(
    config: ExperimentConfig,
    workdir: Path | str,
    *,
    processes: Processes | None = None,
    profile: str | None = None,
    allow_recompilation: bool = False,
) -> int:
    """Train in a run folder, from its last checkpoint if it has one, and return the exit code.

    Args:
        processes: connect to the other processes of the run first, before any device is touched.
        profile: steps to write a trace of, such as ``10:12``.
        allow_recompilation: warn instead of ending the run if the loop compiles something after its first steps.

    Raises:
        ClipaError: a mistake in config, data, run folder or the steps to profile.
    """
    profiled = None if profile is None else ProfiledSteps.of(profile)
    if processes is not None:
        connect_processes(processes)
    try:
        result = train(config, workdir, profile=profiled, allow_recompilation=allow_recompilation)
    except Interrupted as stop:
        _log.warning("%s", stop)
        return INTERRUPTED
    _log.info("done: %s, model in %s", counted(result.steps, "step"), address(result.model_folder))
    if jax.process_index() == 0:
        print("\n".join(_next_lines(config, address(workdir), address(result.model_folder))))
    return OK


def _next_lines(config: ExperimentConfig, workdir: str, model: str) -> list[str]:
    data = config.zero_shot[0].data if config.zero_shot else "LABELED_RECORDS"
    result = Path("zero-shot.json") if bucket_at(workdir) else Path(workdir) / "zero-shot.json"
    score = command_line("evaluate", model, "--suite", "zero-shot", "--data", data, "--out", result)
    done = () if config.init is None else flags_after(config.init.surgery)
    return next_lines(
        (command_line("show", workdir), "progress, curves and parameters of the run"),
        (score, "score the model on records with class labels"),
        (
            command_line("train", "CONFIG.py", "--workdir", "NEW_RUN", "--init-from", workdir, *done),
            "train on from these weights, such as at full size",
        ),
    )
