"""The curves of a run folder, in the terminal and as an image file, once or again and again while the run trains."""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from clipa_eqx.buckets.mirror import refresh, shown
from clipa_eqx.errors import ClipaError, ConfigError, pip_install
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import from_json
from clipa_eqx.programs.terminal_plot import Paper, plot_charts
from clipa_eqx.reports.curves import Chart, run_charts
from clipa_eqx.reports.run_progress import is_finished, progress
from clipa_eqx.reports.scores import Line
from clipa_eqx.saved.kinds import METRICS_NAME
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.run_folder import read_record
from clipa_eqx.training.run_lock import is_training

SUFFIXES = (".png", ".svg", ".pdf")
"""Endings of image files that curves can be drawn to."""

_CLEAR = "\x1b[H\x1b[2J\x1b[3J"


def show_curves(folder: Path, out: Path | None, *, every_seconds: float | None = None) -> None:
    """Print progress and curves of a run, and draw the curves to a file.

    Args:
        out: the file; None is ``NAME-curves.png`` in the current folder, and then an obstacle is only reported.
        every_seconds: repeat this, so many seconds apart, until the last step is logged; None does it once.

    Raises:
        CheckpointError: the run folder is damaged.
        ConfigError: ``out`` cannot be drawn or written.
    """
    if out is not None and out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out is {out}; give a name that ends in {', '.join(SUFFIXES)}")
    while True:
        refresh(folder)
        config = from_json(ExperimentConfig, read_record(folder)["config"], where=str(folder))
        lines = read_metrics(folder / METRICS_NAME)
        text = "\n".join(_text(folder, config, lines, out))
        is_redrawn = every_seconds is not None and sys.stdout.isatty()
        print(f"{_CLEAR}{text}" if is_redrawn else text, flush=True)
        if every_seconds is None or is_finished(config, lines):
            return
        time.sleep(every_seconds)


def _text(folder: Path, config: ExperimentConfig, lines: Sequence[Line], out: Path | None) -> Iterator[str]:
    charts = run_charts(lines)
    yield f"{shown(folder)}: {progress(config, lines, now=time.time(), is_training=is_training(folder))}"
    yield ""
    yield from plot_charts(charts, _paper())
    if charts:
        yield _draw(folder, charts, out, title=f"{shown(folder)}, step {lines[-1]['step']:,}")


def _draw(folder: Path, charts: Sequence[Chart], out: Path | None, *, title: str) -> str:
    """Draw the file and return the line that reports it."""
    path = out or Path(f"{folder.resolve().name}-curves.png")
    try:
        if out is None and Path.cwd() == folder.resolve():
            raise ConfigError("it would be written into the run folder; name a file with --out")
        _write(path, charts, title=title)
    except ClipaError as error:
        if out is not None:
            raise
        return f"no image of the curves is drawn: {error}"
    return f"curves drawn to {path}"


def _write(path: Path, charts: Sequence[Chart], *, title: str) -> None:
    try:
        # matplotlib is optional: curves in the terminal do not need it.
        from clipa_eqx.programs.figure import write_charts
    except ImportError as error:
        raise ConfigError(f"an image file needs matplotlib; install it with `{pip_install('matplotlib')}`") from error
    try:
        write_charts(path, charts, title=title)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); name another file with --out") from error


def _paper() -> Paper:
    """The terminal; 80 columns of plain text if the output goes to a file or a pipe."""
    is_terminal = sys.stdout.isatty()
    return Paper(
        width=shutil.get_terminal_size((80, 24)).columns if is_terminal else 80,
        has_braille=_can_print("⣿└│─┤"),
        has_colors=is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb",
    )


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
