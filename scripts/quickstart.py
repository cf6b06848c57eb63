"""From icon fonts to a trained and scored CLIPA model with a report, on real drawings (`make quickstart`)."""

import argparse
import dataclasses
import itertools
import json
import logging
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from clipa_eqx.cli import FAILED, OK, run
from clipa_eqx.replacing import write_text

ROOT = Path(__file__).resolve().parent.parent
_log = logging.getLogger("quickstart")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("runs/quickstart"), help="where everything goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--baseline", action="store_true", help="spend the same training time at full size only (its own folder)"
    )
    parser.add_argument(
        "--short", action="store_true", help="a few steps per stage: shows that it runs, not what it learns"
    )
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if arguments.baseline:
        folder = folder.with_name(f"{folder.name}-baseline")
    if (folder / "result.json").exists():
        taken = (folder.with_name(f"{folder.name}-previous-{n}") for n in itertools.count(1))
        previous = next(path for path in taken if not path.exists())
        folder.rename(previous)
        _log.info("the finished run in %s is now %s", folder, previous)

    # Imported late: --help needs none of it.
    from clipa_eqx.config_files import load_config
    from clipa_eqx.durations import RunLength
    from clipa_eqx.training.loop import train
    from clipa_eqx.training.metrics import read_metrics
    from clipa_eqx.training.stopping import Interrupted

    spent = _Seconds(folder / "seconds.json")
    spent.measure("data", lambda: _make_data(folder / "data"))
    stages = ("baseline",) if arguments.baseline else ("pretrain", "tune")
    described: list[dict[str, Any]] = []
    for stage in stages:
        config = load_config(ROOT / "configs" / f"quickstart_{stage}.py")
        config = _placed(config, folder, seed=arguments.seed, is_short=arguments.short)
        _log.info("stage %s", stage)
        try:
            spent.measure(stage, lambda config=config, stage=stage: train(config, folder / stage))
        except Interrupted as stop:
            _log.warning("%s", stop)
            return FAILED
        steps = RunLength.of(config.duration).total_steps
        described.append(
            {
                "name": stage,
                "steps": steps,
                "batch_size": config.batch_size,
                "image_tokens": 1 + config.model.image.patches,
                "text_tokens": config.model.text.length,
                "seconds": spent.seconds[stage],
                "curve": read_metrics(folder / stage / "metrics.jsonl"),
            }
        )
    scored = spent.measure("score", lambda: _score(folder / stages[-1] / "model", folder / "data" / "test"))
    result = {
        "top1": scored["top1"],
        "top5": scored["top5"],
        "seconds": sum(spent.seconds.values()),
        "parts": spent.seconds,
        "seed": arguments.seed,
        "class_count": scored["class_count"],
        "count": scored["count"],
        "is_short": arguments.short,
        "stages": [{k: v for k, v in one.items() if k != "curve"} for one in described],
    }
    from quickstart_report import training_seconds, write_report

    baseline = ROOT / "docs" / "quickstart_baseline.json"
    spent.measure(
        "report", lambda: write_report(folder / "report.html", result, described, scored, folder / "data", baseline)
    )
    result["seconds"] = sum(spent.seconds.values())
    if arguments.baseline:
        curve = [
            [row["examples_seen"], row["zero_shot/validation/top1"], row["zero_shot/validation/top5"]]
            for row in described[0]["curve"]
            if "zero_shot/validation/top1" in row
        ]
        recorded = {
            **result,
            "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
            "seconds_per_example": training_seconds(described[0]["curve"])[-1] / curve[-1][0],
            "curve": curve,
        }
        # Copied to docs/quickstart_baseline.json, this is what reports draw beside their own curve.
        _write_json(folder / "baseline.json", recorded)
    _write_json(folder / "result.json", result)
    print(
        f"zero-shot on the held-out family: top-1 {100 * result['top1']:.1f} %, top-5 {100 * result['top5']:.1f} % "
        f"of {result['class_count']} classes in {result['seconds']:.0f} s; report: {folder / 'report.html'}"
    )
    return OK


class _Seconds:
    """Seconds per part, kept on disk: an interrupted quickstart that goes on counts what it spent before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def measure(self, part: str, work: Any) -> Any:
        since = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - since
            if self._path.parent.is_dir():
                _write_json(self._path, self.seconds)


def _make_data(folder: Path) -> None:
    """Records of all three sets, and a vocabulary of the training captions; made once."""
    from clipa_eqx.data.array_record_reader import open_records
    from clipa_eqx.tokenizer import train_wordpiece, write_vocab
    from configs.quickstart_pretrain import VOCAB_SIZE
    from conversion.icons.records import build_icon_records

    vocab = folder / "vocab.txt"
    if vocab.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    _log.info("drawing icons")
    manifests = build_icon_records(folder, overwrite=True)
    for name in ("train", "validation", "test"):
        manifest = getattr(manifests, name)
        _log.info(
            "%s: %d of %d rows, dropped %s", name, manifest.rows_written, manifest.rows_read, manifest.rows_dropped
        )
    source = open_records(folder / "train")
    captions = [caption for record in source.read(range(len(source))) for caption in record.captions]
    write_vocab(train_wordpiece(captions, vocab_size=VOCAB_SIZE), vocab)


def _placed(config: Any, folder: Path, *, seed: int, is_short: bool) -> Any:
    """The stage's config with its paths under ``folder``."""
    from clipa_eqx.durations import Duration
    from clipa_eqx.experiment import DataSource

    data = dataclasses.replace(
        config.data,
        sources=(DataSource(folder=str(folder / "data" / "train")),),
        vocab=str(folder / "data" / "vocab.txt"),
    )
    zero_shot = tuple(dataclasses.replace(one, data=str(folder / "data" / "validation")) for one in config.zero_shot)
    init = None if config.init is None else dataclasses.replace(config.init, source=str(folder / "pretrain"))
    config = dataclasses.replace(config, data=data, zero_shot=zero_shot, init=init, seed=seed)
    return dataclasses.replace(config, duration=Duration(steps=6), log_every_steps=2) if is_short else config


def _score(model: Path, data: Path) -> dict[str, Any]:
    """The held-out family, looked at once, after all training: scores and each drawing's likeliest names."""
    from functools import partial

    from clipa_eqx.data.array_record_reader import open_records
    from clipa_eqx.data.images.evaluation import eval_image
    from clipa_eqx.data.stream import eval_stream
    from clipa_eqx.evals.zero_shot import ZeroShotConfig, ZeroShotTransform, evaluate_zero_shot, prepare_zero_shot
    from clipa_eqx.saved.model import load_model

    loaded = load_model(model)
    source = open_records(data)
    task = prepare_zero_shot(
        ZeroShotConfig(data=str(data), templates=("{}",)),
        manifest_class_names=source.manifest.class_names,
        tokenizer=loaded.tokenizer.tokenizer,
        length=loaded.model.config.text.length,
    )
    transform = ZeroShotTransform(picture=partial(eval_image, config=loaded.preprocess.config))
    with eval_stream(source, transform, batch_size=task.config.batch_size) as batches:
        result = evaluate_zero_shot(loaded.model, task, batches)
    return {**result.to_json(with_predictions=True), "class_names": list(task.class_names)}


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run(main))
