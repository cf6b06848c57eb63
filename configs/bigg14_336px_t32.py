"""bigG/14 fine-tuning: 336 px, 32 text tokens, 131 million pairs, 40 % of the patches masked.

Command:   python scripts/train.py configs/bigg14_336px_t32.py --workdir runs/bigg14_336px_t32
Hardware:  TPU pod slice; laid out for 512 TPU v3 cores (16 GB each). The number of devices is a multiple of 16 that
           divides the batch; with fewer, each needs more memory.
Plan:      per device 6.75 GiB on v3:16x16 (`scripts/plan.py`, docs/performance.md).
Samples:   131,072,000 pairs: 8,000 steps of 16,384.
Hours:     1,744 A100 hours, the difference of the published 23,742 for all three stages and 21,998 for the first two;
           not re-run here.
Expect:    83.0 % zero-shot ImageNet top-1 with DataComp-1B. Published by the reference, not re-run here.
Table:     12.8B@84 + 512M@224 + 128M@336 with DataComp-1B.
Differs:   from `model_bigG/unmask_tuning_336_scheduleX1` of the t5x branch in the data: that file names LAION-400M, the
           published models were trained on DataComp-1B. Adam's count starts at 0, there it keeps the value of the stage
           before (D13).
Notes:     Everything except norms, biases, positions and temperature is decayed, as in the t5x branch. The initial
           weights matter only with `--init none`; then they are those of `bigg14_84px_t8.py`.
"""

from clipa_eqx import T5X_DECAY, ColorConfig, ExperimentConfig, InitConfig, MeshConfig, finetune_stage, stage_model


def config() -> ExperimentConfig:
    return finetune_stage(
        stage_model("bigG/14", image_size=336, length=32, image_init="scaled", mask_ratio=0.4, remat="both"),
        init=InitConfig(source="runs/bigg14_224px_t32"),
        records="data/datacomp1b",
        batch_size=16_384,
        pairs=131_072_000,
        base_lr=1e-7,  # peak 6.4e-6
        warmup_pairs=26_214_400,
        color=ColorConfig(),
        decay=T5X_DECAY,
        mu_dtype="bfloat16",
        # Parameters and both moments take 23 GiB; each device holds a sixteenth.
        mesh=MeshConfig(fsdp=16),
    )
