"""The work of ``compare_runs``: read the run folders and write the page."""

from collections.abc import Mapping
from pathlib import Path

from clipa_eqx.buckets.mirror import local_copy, named
from clipa_eqx.errors import CheckpointError, ConfigError
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import from_json
from clipa_eqx.replacing import write_text
from clipa_eqx.reports.comparison import ComparedRun, comparison_page
from clipa_eqx.saved.kinds import METRICS_NAME, expect_kind
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.run_folder import read_record
from clipa_eqx.training.run_lock import is_starting


def write_comparison(folders: Mapping[str, Path], prices: Mapping[str, float], out: Path) -> None:
    """Write the page that compares runs.

    Args:
        folders: run folder of each name.
        prices: dollars per device and hour by name, for the runs that have a price.

    Raises:
        CheckpointError: a folder is no run folder, is damaged, or has no metrics yet.
        ConfigError: the page cannot be written.
    """
    runs = [read_run(folder, name=name, price=prices.get(name)) for name, folder in folders.items()]
    try:
        write_text(out, comparison_page(runs))
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}); name another file with --out") from error


def read_run(folder: Path, *, name: str, price: float | None) -> ComparedRun:
    """Read a run folder that is compared.

    Raises:
        CheckpointError: it is no run folder, is damaged, or has no metrics yet.
    """
    with named(folder):
        return _read_run(local_copy(folder, with_weights=False), name=name, price=price)


def _read_run(folder: Path, *, name: str, price: float | None) -> ComparedRun:
    if is_starting(folder):
        raise CheckpointError(f"{folder}: a run starts there and has written nothing yet; try again when it trains")
    expect_kind(folder, "run folder")
    config = from_json(ExperimentConfig, read_record(folder)["config"], where=str(folder))
    lines = read_metrics(folder / METRICS_NAME)
    if not lines:
        raise CheckpointError(f"{folder} has no metrics yet; try again after its first steps, or leave it out")
    return ComparedRun(name=name, config=config, lines=lines, price=price)
