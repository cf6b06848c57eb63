"""The report of a run folder, written by another process than the one that trains."""

import time
from collections.abc import Sequence
from pathlib import Path

from clipa_eqx.errors import ClipaError, ConfigError
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import from_json
from clipa_eqx.replacing import write_text
from clipa_eqx.reports.run_facts import run_facts
from clipa_eqx.reports.run_page import REPORT_NAME, FixedParts, RunAbout, RunState, run_page
from clipa_eqx.reports.run_progress import is_finished, total_steps
from clipa_eqx.reports.samples import Sample
from clipa_eqx.reports.scores import Line
from clipa_eqx.saved.kinds import CHECKPOINTS_NAME, METRICS_NAME
from clipa_eqx.surgery.init_config import abstract_model
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.training.checkpoint_record import committed_steps
from clipa_eqx.training.inputs import open_sources
from clipa_eqx.training.live_report import run_samples
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.run_folder import read_record
from clipa_eqx.training.run_lock import is_training
from clipa_eqx.trees import count_params


def write_run_report(folder: Path, out: Path | None) -> Path:
    """Write the report of a run, and return its path.

    Args:
        out: the file; None is ``report.html`` in the run folder.

    Raises:
        CheckpointError: the run folder is damaged.
        ConfigError: the file cannot be written.
    """
    path = out or folder / REPORT_NAME
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--report is {path}; give a name that ends in .html")
    config = from_json(ExperimentConfig, read_record(folder)["config"], where=str(folder))
    lines = read_metrics(folder / METRICS_NAME)
    facts = run_facts(
        config,
        parameters=count_params(abstract_model(config.model, config.init)),
        total_steps=total_steps(config, lines),
        machine=None,
    )
    about = RunAbout(name=folder.resolve().name, config=config, facts=facts, samples=_samples(config))
    saved = committed_steps(folder / CHECKPOINTS_NAME)
    state = run_state(config, lines, saved=saved, is_training=is_training(folder))
    try:
        write_text(path, run_page(FixedParts.of(about), lines, state, now=time.time()))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}); name another file with --report FILE.html"
        ) from error
    return path


def run_state(
    config: ExperimentConfig, lines: Sequence[Line], *, saved: Sequence[int], is_training: bool | None
) -> RunState:
    """The state of a run by its folder.

    Args:
        saved: steps of its checkpoints.
        is_training: whether a process trains in the folder; None if that is not known.
    """
    step = int(lines[-1]["step"]) if lines else 0
    if is_finished(config, lines):
        return RunState(kind="finished", words="the last step is done")
    if is_training is not False:
        unknown = "a process of another machine holds the folder" if is_training is None else ""
        return RunState(kind="training", words=unknown)
    again = "the same train command resumes it"
    if saved and saved[-1] >= step:
        return RunState(kind="interrupted", words=f"saved after step {saved[-1]:,}; {again}")
    newest = f"from step {saved[-1]:,}" if saved else "from the beginning, because there is no checkpoint"
    return RunState(kind="stopped", words=f"no process trains in this folder; {again} {newest}")


def _samples(config: ExperimentConfig) -> list[Sample] | str:
    try:
        tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
        return run_samples(config, open_sources(config), tokenizer)
    except ClipaError as error:
        return f"The samples cannot be shown: {error}"
