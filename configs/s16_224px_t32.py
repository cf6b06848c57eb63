"""S/16 fine-tuning: 224 px, 32 text tokens, 131 million pairs, no masking.

Command:   python scripts/train.py configs/s16_224px_t32.py --workdir runs/s16_224px_t32
Hardware:  TPU pod slice or GPUs. The number of devices divides the batch; with fewer, each needs more memory.
Plan:      per device 2.33 GiB on v3:16x16 (`scripts/plan.py`, docs/performance.md).
Samples:   131,072,000 pairs: 4,000 steps of 32,768.
Hours:     not published.
Expect:    no number published.
Table:     none.
Differs:   from `model_s/unmask_tuning` of the t5x branch only in what docs/recipes.md lists for all recipes. That file
           also has `lora=True`, which only another program of the branch reads.
Notes:     These recipes pool the class token. `--init-from` starts from 64 px.
"""

from clipa_eqx import ExperimentConfig, InitConfig, finetune_stage, stage_model


def config() -> ExperimentConfig:
    return finetune_stage(
        stage_model("S/16", image_size=224, length=32, image_pool="tok", remat="image"),
        init=InitConfig(source="runs/s16_112px_t32"),
        records="data/laion400m",
        batch_size=32_768,
        pairs=131_072_000,
        base_lr=8e-7,  # peak 1.024e-4
        warmup_pairs=26_214_400,
        resize="resize_small_crop",
        score_every_steps=500,
    )
