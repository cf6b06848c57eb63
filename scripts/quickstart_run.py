"""The quickstart's work: data and vocabulary, one or two stages of training, scores, and the files with the result."""

import dataclasses
import json
import logging
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from clipa_eqx.cli import INTERRUPTED, OK
from clipa_eqx.commands import command_line, next_lines
from clipa_eqx.config_files import load_config
from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.durations import Duration, RunLength
from clipa_eqx.evals.counting import ZeroShotResult
from clipa_eqx.evals.record_folder import score_records
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.experiment import DataSource, ExperimentConfig
from clipa_eqx.programs.score import write_result
from clipa_eqx.saved.model import load_model
from clipa_eqx.tokenizer.train import train_wordpiece
from clipa_eqx.tokenizer.vocabulary import write_vocab
from clipa_eqx.training.loop import train
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.stopping import Interrupted
from configs.quickstart_pretrain import ICON_SIZE, VOCAB_SIZE
from conversion.icons.build import build_icon_records
from scripts.quickstart_report import write_report
from scripts.quickstart_result import Result, Stage, read_baseline, training_seconds

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "docs" / "quickstart_baseline.json"
"""The recorded curve that reports draw next to their own."""

_log = logging.getLogger("quickstart")
_T = TypeVar("_T")


def run_quickstart(folder: Path, *, seed: int, is_baseline: bool, is_short: bool) -> int:
    """Make data, train, score and report in a folder; parts that are done are not repeated. Returns the exit code.

    Args:
        is_baseline: train at full size only, and write ``baseline.json`` too.
        is_short: do 6 steps per stage.
    """
    spent = _Seconds(folder / "seconds.json")
    spent.measure("data", lambda: _make_data(folder / "data"))
    stages: list[Stage] = []
    for name in ("baseline",) if is_baseline else ("pretrain", "tune"):
        config = load_config(ROOT / "configs" / f"quickstart_{name}.py")
        config = _placed(config, folder, seed=seed, is_short=is_short)
        _log.info("stage %s", name)
        try:
            spent.measure(name, lambda config=config, name=name: train(config, folder / name))
        except Interrupted as stop:
            _log.warning("%s", stop)
            return INTERRUPTED
        curve = read_metrics(folder / name / "metrics.jsonl")
        stages.append(_stage(name, config, seconds=spent.seconds[name], curve=curve))
    test = folder / "data" / "test"
    scored = spent.measure("score", lambda: _score(folder / stages[-1].name / "model", test))
    result = Result(scored=scored, stages=stages, parts=spent.seconds, seed=seed, is_short=is_short)
    report = folder / "report.html"
    spent.measure("report", lambda: write_report(report, result, open_records(test), read_baseline(BASELINE)))
    if is_baseline:
        write_result(folder / "baseline.json", _baseline(result))
    write_result(folder / "result.json", result.to_json())
    print(
        f"zero-shot on the held-out family: top-1 {100 * scored.top1:.1f} %, top-5 {100 * scored.top5:.1f} % "
        f"of {len(scored.per_class_count)} classes in {result.seconds:.0f} s; report: {report}"
    )
    vectors = folder / "embeddings"
    embed = command_line("embed", folder / stages[-1].name, "--images", test, "--out", vectors)
    search = command_line("search", vectors, "--text", "arrow", "--html", folder / "arrow.html")
    print("\n".join(next_lines((embed, "vectors of the held-out icons"), (search, "a page of the most similar ones"))))
    return OK


class _Seconds:
    """Seconds per part, kept on disk, so that a resumed quickstart counts the time spent before its interruption."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def measure(self, part: str, work: Callable[[], _T]) -> _T:
        since = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - since
            if self._path.parent.is_dir():
                write_result(self._path, self.seconds)


def _make_data(folder: Path) -> None:
    """Make the records of all three groups of fonts and a vocabulary of the training captions, if not done yet."""
    vocab = folder / "vocab.txt"
    if vocab.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    _log.info("drawing icons")
    manifests = build_icon_records(folder, size=ICON_SIZE, overwrite=True)
    groups = {"train": manifests.train, "validation": manifests.validation, "test": manifests.test}
    for name, manifest in groups.items():
        _log.info(
            "%s: %d of %d rows, dropped %s", name, manifest.rows_written, manifest.rows_read, manifest.rows_dropped
        )
    source = open_records(folder / "train")
    captions = [caption for record in source.read(range(len(source))) for caption in record.captions]
    write_vocab(train_wordpiece(captions, vocab_size=VOCAB_SIZE), vocab)


def _placed(config: ExperimentConfig, folder: Path, *, seed: int, is_short: bool) -> ExperimentConfig:
    """A stage's config with its paths in ``folder``."""
    data = dataclasses.replace(
        config.data,
        sources=(DataSource(folder=str(folder / "data" / "train")),),
        vocab=str(folder / "data" / "vocab.txt"),
    )
    zero_shot = tuple(dataclasses.replace(one, data=str(folder / "data" / "validation")) for one in config.zero_shot)
    init = None if config.init is None else dataclasses.replace(config.init, source=str(folder / "pretrain"))
    config = dataclasses.replace(config, data=data, zero_shot=zero_shot, init=init, seed=seed)
    return dataclasses.replace(config, duration=Duration(steps=6), log_every_steps=2) if is_short else config


def _stage(name: str, config: ExperimentConfig, *, seconds: float, curve: list[dict[str, float]]) -> Stage:
    return Stage(
        name=name,
        steps=RunLength.of(config.duration).total_steps,
        batch_size=config.batch_size,
        image_tokens=1 + config.model.image.patches,
        text_tokens=config.model.text.length,
        seconds=seconds,
        curve=curve,
    )


def _score(model: Path, data: Path) -> ZeroShotResult:
    """Score the held-out family. It is looked at once, after all training."""
    loaded = load_model(model)
    return score_records(
        loaded.model,
        ZeroShotConfig(data=str(data), templates=("{}",)),
        open_records(data),
        tokenizer=loaded.tokenizer.tokenizer,
        preprocess=loaded.preprocess.config,
    )


def _baseline(result: Result) -> dict[str, object]:
    """A result with its curve: the JSON object that ``read_baseline`` reads."""
    (stage,) = result.stages
    curve = [
        [row["examples_seen"], row["zero_shot/validation/top1"], row["zero_shot/validation/top5"]]
        for row in stage.curve
        if "zero_shot/validation/top1" in row
    ]
    return {
        **result.to_json(),
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "seconds_per_example": training_seconds(stage.curve) / curve[-1][0],
        "curve": curve,
    }
