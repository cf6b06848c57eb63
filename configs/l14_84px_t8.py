"""L/14 pre-training: 84 px (36 patches), 8 text tokens, 12.8 billion pairs.

Command:   python scripts/train.py configs/l14_84px_t8.py --workdir runs/l14_84px_t8
Hardware:  TPU pod slice; laid out for 512 TPU v3 cores (16 GB each). The number of devices is a multiple of 8 that
           divides the batch; with fewer, each needs more memory.
Plan:      per device 1.72 GiB on v3:16x16, 1.80 GiB on v4:8x8x4, 2.63 GiB on v5e:16x16, 2.25 GiB on v6e:16x16
           (`scripts/plan.py`, docs/performance.md).
Samples:   12,811,632,640 pairs: 195,490 steps of 65,536, 10,000 times the images of ImageNet.
Hours:     4,008 A100 hours published for this stage and the one at 224 px together; not re-run here.
Expect:    72.7 % zero-shot ImageNet top-1 with DataComp-1B. Published by the reference, not re-run here.
Table:     12.8B@84 with DataComp-1B; first stage of 12.8B@84 + 512M@224 and of 12.8B@84 + 512M@224 + 128M@336.
Differs:   The reference has no L/14 file. This one is assembled from its H/14 recipe of the same stage; only the model
           differs, and the data.
Notes:     Captions and prompts are cut to 8 tokens by part of speech (nouns first), as the reference trains and scores.
"""

from clipa_eqx import ColorConfig, Duration, ExperimentConfig, MeshConfig, pretrain_stage, stage_model


def config() -> ExperimentConfig:
    batch_size = 65_536
    # 10,000 times the 1,281,167 images of ImageNet: 12.8 billion pairs.
    steps = 10_000 * 1_281_167 // batch_size
    return pretrain_stage(
        stage_model("L/14", image_size=84, length=8, remat="both"),
        records="data/datacomp1b",
        batch_size=batch_size,
        duration=Duration(steps=steps),
        base_lr=8e-6,  # peak 2.048e-3
        warmup=Duration(fraction=3200 / steps),
        text_reduction="syntax",
        color=ColorConfig(),
        mu_dtype="bfloat16",
        # Parameters and both moments take 4 GiB; each device holds an eighth.
        mesh=MeshConfig(fsdp=8),
    )
