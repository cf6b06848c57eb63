"""L/16 fine-tuning: 224 px, 32 text tokens, 131 million pairs, no masking.

Command:   python scripts/train.py configs/l16_224px_t32.py --workdir runs/l16_224px_t32
Hardware:  TPU pod slice or GPUs. The number of devices divides the batch; with fewer, each needs more memory.
Plan:      per device 9.79 GiB on v3:16x16 (`scripts/plan.py`, docs/performance.md).
Samples:   131,072,000 pairs: 4,000 steps of 32,768.
Hours:     about 3 days on 8 A100 published for the nearest setting, pre-training included; not re-run here.
Expect:    67.8 % zero-shot ImageNet top-1 published after pre-training at 64 px with 16 text tokens by the reference's
           torch code; none for 32.
Table:     none.
Differs:   from `model_l/unmask_tuning` only in what docs/recipes.md lists for all recipes; the file of the t5x branch
           has half the learning rate.
Notes:     These recipes pool the class token.
"""

from clipa_eqx import ExperimentConfig, InitConfig, finetune_stage, stage_model


def config() -> ExperimentConfig:
    return finetune_stage(
        stage_model("L/16", image_size=224, length=32, image_pool="tok", remat="image"),
        init=InitConfig(source="runs/l16_64px_t32"),
        records="data/laion400m",
        batch_size=32_768,
        pairs=131_072_000,
        base_lr=8e-7,  # peak 1.024e-4
        warmup_pairs=26_214_400,
        resize="resize_small_crop",
    )
