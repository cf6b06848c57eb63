"""Stage 2 of `make quickstart`: a short fine-tune at full size, 24 px (10 image tokens) and 8 text tokens.

Command:   make quickstart        (or: python scripts/train.py configs/quickstart_tune.py --workdir DIR)
Hardware:  two CPU cores
Time:      see "Quickstart result" in README.md
Expect:    see there
"""

import dataclasses

from clipa_eqx import Duration, EvalImageConfig, ExperimentConfig, InitConfig
from configs import quickstart_pretrain as pretrain


def config() -> ExperimentConfig:
    return dataclasses.replace(
        pretrain.config(),
        model=pretrain.model(image_size=24, length=8),
        data=pretrain.data(image_size=24),
        optim=pretrain.optim(1e-3),
        duration=Duration(steps=1000),
        eval_image=EvalImageConfig(size=(24, 24), resize="squash"),
        zero_shot=tuple(dataclasses.replace(one, every_steps=200) for one in pretrain.config().zero_shot),
        init=InitConfig(source="runs/quickstart/pretrain", resize_text=True, text_rows="first"),
    )
