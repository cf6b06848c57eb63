"""The work of the study: data, all runs of the grid one after the other, and the files with the results."""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from clipa_eqx.cli import INTERRUPTED, OK
from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.errors import CheckpointError, ConfigError, counted
from clipa_eqx.evals.record_folder import score_records
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.json_files import read_json_object
from clipa_eqx.programs.score import write_result
from clipa_eqx.replacing import write_text
from clipa_eqx.saved.model import load_model
from clipa_eqx.tokenizer.train import train_wordpiece
from clipa_eqx.tokenizer.vocabulary import write_vocab
from clipa_eqx.training.loop import train
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.stopping import Interrupted
from conversion.icons.build import build_icon_records
from scripts.inverse_scaling_figure import draw
from scripts.inverse_scaling_grid import SHORT, STUDY, VOCAB_SIZE, Budget, Run, grid, pretraining, tuning

SCORED = ("validation", "test")
"""Record folders of the families that are not in the training data."""

_log = logging.getLogger(__name__)


def run_study(folder: Path, *, seeds: Sequence[int], is_short: bool) -> int:
    """Run what is left of the study in a folder; finished runs are not repeated. Returns the exit code.

    After each run, ``results.json`` and ``figure.svg`` are written with all runs that are finished.

    Raises:
        ConfigError: the folder holds a study with another budget or something else, or cannot be made.
        CheckpointError: a file of an earlier call is damaged.
    """
    budget = SHORT if is_short else STUDY
    _claim(folder, budget)
    _make_data(folder / "data")
    runs = grid(seeds, budget)
    rows = [_finished(folder, run) for run in runs]
    left = _TimeLeft([run for run, row in zip(runs, rows, strict=True) if row is None])
    for number, run in enumerate(runs):
        if rows[number] is None:
            steps = f"{run.pretrain_steps} + {run.budget.tune} steps"
            _log.info("run %d of %d, %s: %s%s", number + 1, len(runs), run.name, steps, left.text())
            try:
                rows[number] = _do(folder, run)
            except Interrupted as stop:
                _log.warning("%s", stop)
                return INTERRUPTED
            left.done(run)
            jax.clear_caches()  # no other run has the same arrays, and what is compiled takes memory
        _write(folder, [row for row in rows if row is not None], planned=len(runs), budget=budget)
    print(f"{counted(len(runs), 'run')}: {folder / 'results.json'} and {folder / 'figure.svg'}")
    return OK


def _claim(folder: Path, budget: Budget) -> None:
    """Note the budget in a new folder, or compare it with that of the study there."""
    note = folder / "study.json"
    wanted = dataclasses.asdict(budget)
    if not note.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"--folder {folder} exists and holds no study; give a new folder, or that of a study")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--folder {folder} cannot be made ({error}); give another") from error
        write_result(note, wanted)
    found = read_json_object(note, error=CheckpointError, hint="give another --folder")
    if found != wanted:
        raise ConfigError(
            f"--folder {folder} holds a study of {_steps(found)}, and this one has {_steps(wanted)}; give another "
            "--folder, or call it with or without --short as before"
        )


def _steps(budget: Mapping[str, Any]) -> str:
    return f"{budget.get('pretrain')} + {budget.get('tune')} steps"


def _make_data(folder: Path) -> None:
    """Make the records of all groups of fonts and a vocabulary of the training captions, if not done yet."""
    vocab = folder / "vocab.txt"
    if vocab.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    _log.info("drawing icons")
    build_icon_records(folder, overwrite=True)
    source = open_records(folder / "train")
    captions = [caption for record in source.read(range(len(source))) for caption in record.captions]
    write_vocab(train_wordpiece(captions, vocab_size=VOCAB_SIZE), vocab)


def _finished(folder: Path, run: Run) -> dict[str, Any] | None:
    path = folder / run.name / "result.json"
    if not path.exists():
        return None
    return read_json_object(path, error=CheckpointError, hint="delete it, and this run is scored again")


def _do(folder: Path, run: Run) -> dict[str, Any]:
    """Train and score both stages of a run, and write its ``result.json`` at the end."""
    place, data = folder / run.name, folder / "data"
    stages = {
        "pretrain": pretraining(run, data=str(data)),
        "tune": tuning(run, data=str(data), source=str(place / "pretrain")),
    }
    row: dict[str, Any] = {
        "size": dataclasses.asdict(run.size),
        "pixels": run.point.pixels,
        "image_tokens": run.point.image_tokens,
        "text_tokens": run.point.text_tokens,
        "seed": run.seed,
        "pairs": run.pairs,
        "flops": run.flops,
    }
    for name, config in stages.items():
        result = train(config, place / name)
        row[name] = {
            "steps": result.steps,
            "seconds": _seconds(read_metrics(place / name / "metrics.jsonl")),
            "scores": {one: _score(result.model_folder, data / one) for one in SCORED},
        }
    write_result(place / "result.json", row)
    return row


def _score(model: Path, data: Path) -> dict[str, float]:
    loaded = load_model(model)
    scored = score_records(
        loaded.model,
        ZeroShotConfig(data=str(data), templates=("{}",)),
        open_records(data),
        tokenizer=loaded.tokenizer.tokenizer,
        preprocess=loaded.preprocess.config,
    )
    return {**scored.scores(), "count": scored.count, "classes": len(scored.per_class_count)}


def _seconds(curve: Sequence[Mapping[str, float]]) -> float:
    """Seconds of training up to the last logged step, without compilation."""
    before, total = 0.0, 0.0
    for row in curve:
        total += (row["step"] - before) * row["seconds_per_step"]
        before = row["step"]
    return total


class _TimeLeft:
    """The time that the remaining runs take, from the time of those that this process has done."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._left = sum(map(_cost, runs))
        self._done = 0.0
        self._since = time.perf_counter()

    def done(self, run: Run) -> None:
        self._left -= _cost(run)
        self._done += _cost(run)

    def text(self) -> str:
        """The end of a line of the log; empty before the first run is done."""
        if not self._done:
            return ""
        spent = time.perf_counter() - self._since
        return f"; {spent / 60:.0f} min so far, about {spent * self._left / self._done / 60:.0f} min left"


def _cost(run: Run) -> float:
    """Seconds of one core, roughly: operations, preparation of pairs, and compilation. Only the ratios count."""
    return run.flops / 30e9 + run.pairs * 0.45e-3 + 15.0


def _write(folder: Path, rows: list[dict[str, Any]], *, planned: int, budget: Budget) -> None:
    results = {"budget": dataclasses.asdict(budget), "planned_runs": planned, "runs": rows}
    write_result(folder / "results.json", results)
    write_text(folder / "figure.svg", draw(rows, planned=planned))
