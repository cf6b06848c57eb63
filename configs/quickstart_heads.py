"""Fine-tune of the heads of the quickstart model alone: both towers are locked, so a step costs little.

Command:   python scripts/train.py configs/quickstart_heads.py --workdir runs/heads --data.sources.0.folder data/mine
Hardware:  two CPU cores
Time:      minutes; `--duration.steps 20` is a short try
Expect:    a third of the operations of a full fine-tune, and checkpoints of a fortieth of the size
Notes:     It starts from runs/quickstart/tune/model; `--init-from MODEL` names another model of this size. To lock
           the image tower alone, as LiT does: `--trainable 'text/.*' log_temperature`. docs/finetuning.md has more.
"""

import dataclasses

from clipa_eqx import Duration, ExperimentConfig, InitConfig
from configs import quickstart_tune as tune


def config() -> ExperimentConfig:
    return dataclasses.replace(
        tune.config(),
        init=InitConfig(source="runs/quickstart/tune/model"),
        trainable=("(image|text)/head/weight", "log_temperature"),
        duration=Duration(steps=500),
    )
