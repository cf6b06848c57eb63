"""Run folders made by hand: a record and a metric log, without any training."""

import json
from pathlib import Path

from clipa_eqx.durations import Duration
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import to_json
from support.tiny_models import tiny_run


def config_of(*, steps: int = 500, **fields: object) -> ExperimentConfig:
    """The config of a run of so many steps, with a line every 10."""
    return tiny_run(**{"duration": Duration(steps=steps), "log_every_steps": 10, **fields})


def metric_line(step: int, *, time: float, **values: object) -> dict[str, object]:
    """A line as the log has it; the loss falls, and an epoch is 10 steps."""
    usual = {"loss": 4.0 / step, "accuracy": 0.01 * step, "lr": 1e-3 * step, "images_per_second": 100.0 + step}
    return {"step": step, **usual, "examples_seen": 8 * step, "epoch": 0.1 * step, **values, "time": time}


def write_run(folder: Path, config: ExperimentConfig, lines: list[dict[str, object]]) -> Path:
    """Write the files of a run without checkpoints, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"version": 1, "config": to_json(config), "data_sha256": "0", "vocab_sha256": "0"}
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
