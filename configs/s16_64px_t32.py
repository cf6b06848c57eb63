"""S/16 pre-training: 64 px (16 patches), 32 text tokens, 7 epochs of LAION-400M.

Command:   python scripts/train.py configs/s16_64px_t32.py --workdir runs/s16_64px_t32
Hardware:  TPU pod slice or GPUs. The number of devices divides the batch; with fewer, each needs more memory.
Plan:      per device 2.07 GiB on v3:16x16 (`scripts/plan.py`, docs/performance.md).
Samples:   2,799,992,832 pairs: 7 epochs of 400 million, 85,449 steps of 32,768.
Hours:     not published.
Expect:    no number published.
Table:     none.
Differs:   from `model_s/64_32` only in what docs/recipes.md lists for all recipes.
Notes:     These recipes pool the class token.
"""

from clipa_eqx import Duration, ExperimentConfig, pretrain_stage, stage_model


def config() -> ExperimentConfig:
    return pretrain_stage(
        stage_model("S/16", image_size=64, length=32, image_pool="tok", remat="image"),
        records="data/laion400m",
        batch_size=32_768,
        duration=Duration(epochs=7.0),
        base_lr=8e-6,  # peak 1.024e-3
        warmup=Duration(fraction=1600 / 85_449),  # 1,600 of the 85,449 steps on 400 million pairs
    )
