"""L/14 fine-tuning: 224 px, 32 text tokens, 524 million pairs, 30 % of the patches masked.

Command:   python scripts/train.py configs/l14_224px_t32.py --workdir runs/l14_224px_t32
Hardware:  TPU pod slice; laid out for 512 TPU v3 cores (16 GB each). The number of devices is a multiple of 8 that
           divides the batch; with fewer, each needs more memory.
Plan:      per device 2.90 GiB on v3:16x16 (`scripts/plan.py`, docs/performance.md).
Samples:   524,288,000 pairs: 16,000 steps of 32,768.
Hours:     4,008 A100 hours published for the stage at 84 px and this one together; not re-run here.
Expect:    79.7 % zero-shot ImageNet top-1 with DataComp-1B. Published by the reference, not re-run here.
Table:     12.8B@84 + 512M@224 with DataComp-1B; second stage of 12.8B@84 + 512M@224 + 128M@336.
Differs:   The reference has no L/14 file. This one is assembled from its H/14 recipe of the same stage; only the model
           differs, and the data.
"""

from clipa_eqx import ColorConfig, ExperimentConfig, InitConfig, MeshConfig, finetune_stage, stage_model


def config() -> ExperimentConfig:
    return finetune_stage(
        stage_model("L/14", image_size=224, length=32, mask_ratio=0.3, remat="both"),
        # The text positions are learned: 8 rows become 32.
        init=InitConfig(source="runs/l14_84px_t8", resize_text=True),
        records="data/datacomp1b",
        batch_size=32_768,
        pairs=524_288_000,
        base_lr=4e-7,  # peak 5.12e-5
        warmup_pairs=26_214_400,
        color=ColorConfig(),
        mu_dtype="bfloat16",
        # Parameters and both moments take 4 GiB; each device holds an eighth.
        mesh=MeshConfig(fsdp=8),
    )
