"""`make quickstart-baseline`: as much training time as both stages of the quickstart, at full size only.

Command:   make quickstart-baseline
Hardware:  two CPU cores
Time:      see "Quickstart result" in README.md
Expect:    see there
"""

import dataclasses

from clipa_eqx import Duration, ExperimentConfig
from configs import quickstart_pretrain as pretrain
from configs import quickstart_tune as tune


def config() -> ExperimentConfig:
    return dataclasses.replace(
        tune.config(),
        optim=pretrain.config().optim,
        duration=Duration(steps=2200),
        zero_shot=tuple(dataclasses.replace(one, every_steps=200) for one in pretrain.config().zero_shot),
        init=None,
    )
