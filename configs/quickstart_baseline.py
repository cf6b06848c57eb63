"""`make quickstart-baseline`: the training time of both stages of the quickstart, spent at full size only.

Command:   make quickstart-baseline
Hardware:  two CPU cores
Time:      see "Quickstart result" in README.md
Expect:    see there
"""

import dataclasses

from clipa_eqx.durations import Duration
from clipa_eqx.experiment import ExperimentConfig
from configs import quickstart_pretrain as pretrain
from configs import quickstart_tune as tune


def config() -> ExperimentConfig:
    return dataclasses.replace(
        tune.config(),
        optim=pretrain.config().optim,
        duration=Duration(steps=1900),
        zero_shot=tuple(dataclasses.replace(one, every_steps=200) for one in pretrain.config().zero_shot),
        init=None,
    )
