"""bigG/14 fine-tuning: 224 px, 32 text tokens, 524 million pairs, 40 % of the patches masked.

Command:   python scripts/train.py configs/bigg14_224px_t32.py --workdir runs/bigg14_224px_t32
Hardware:  TPU pod slice; laid out for 512 TPU v3 cores (16 GB each). The number of devices is a multiple of 16 that
           divides the batch; with fewer, each needs more memory.
Plan:      per device 4.31 GiB on v3:16x16 (`scripts/plan.py`, docs/performance.md).
Samples:   524,288,000 pairs: 32,000 steps of 16,384.
Hours:     21,998 A100 hours published for pre-training at 84 px and this stage together; not re-run here.
Expect:    82.5 % (the reference's JAX table) or 82.7 % (its torch table and open_clip) zero-shot ImageNet top-1 with
           DataComp-1B. Published by the reference, not re-run here.
Table:     12.8B@84 + 512M@224 with DataComp-1B; second stage of 12.8B@84 + 512M@224 + 128M@336.
Differs:   from `model_bigG/unmask_tuning_224_scheduleX4` of the t5x branch in the data: that file names LAION-400M, the
           published models were trained on DataComp-1B. Adam's count starts at 0, there it keeps the value of the
           pre-training (D13).
Notes:     The recipe has no warm-up. Everything except norms, biases, positions and temperature is decayed, as in the
           t5x branch. The initial weights matter only with `--init none`; then they are those of `bigg14_84px_t8.py`.
"""

from clipa_eqx import T5X_DECAY, ColorConfig, ExperimentConfig, InitConfig, MeshConfig, finetune_stage, stage_model


def config() -> ExperimentConfig:
    return finetune_stage(
        stage_model("bigG/14", image_size=224, length=32, image_init="scaled", mask_ratio=0.4, remat="both"),
        # The text positions are learned: 8 rows become 32.
        init=InitConfig(source="runs/bigg14_84px_t8", resize_text=True),
        records="data/datacomp1b",
        batch_size=16_384,
        pairs=524_288_000,
        base_lr=4e-7,  # peak 2.56e-5
        color=ColorConfig(),
        decay=T5X_DECAY,
        mu_dtype="bfloat16",
        # Parameters and both moments take 23 GiB; each device holds a sixteenth.
        mesh=MeshConfig(fsdp=16),
    )
