"""LoRA fine-tune of the quickstart model: factors of rank 8 next to the attention weights of both towers.

Command:   python scripts/train.py configs/quickstart_lora.py --workdir runs/lora --data.sources.0.folder data/mine
Hardware:  two CPU cores
Time:      minutes; `--duration.steps 20` is a short try
Expect:    a model folder like that of a full fine-tune, and runs/lora/adapters of 80 kB
Notes:     It starts from runs/quickstart/tune/model; `--init-from MODEL` names another model of this size.
           docs/finetuning.md describes the fields.
"""

import dataclasses

from clipa_eqx import Duration, ExperimentConfig, InitConfig
from clipa_eqx.surgery import LORA_FACTORS, Lora
from configs import quickstart_tune as tune


def config() -> ExperimentConfig:
    factors = Lora(rank=8, alpha=16.0, targets=("(image|text)/blocks/attn/(q|v)/weight",))
    return dataclasses.replace(
        tune.config(),
        init=InitConfig(source="runs/quickstart/tune/model", surgery=(factors,)),
        trainable=(LORA_FACTORS,),
        duration=Duration(steps=500),
    )
