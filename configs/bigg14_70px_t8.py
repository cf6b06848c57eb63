"""bigG/14 pre-training: 70 px (25 patches), 8 text tokens, 12.8 billion pairs.

Command:   python scripts/train.py configs/bigg14_70px_t8.py --workdir runs/bigg14_70px_t8
Hardware:  TPU pod slice; laid out for 512 TPU v3 cores (16 GB each). The number of devices is a multiple of 16 that
           divides the batch; with fewer, each needs more memory.
Plan:      per device 3.98 GiB on v3:16x16 (`scripts/plan.py`, docs/performance.md).
Samples:   12,811,632,640 pairs: 195,490 steps of 65,536, 10,000 times the images of ImageNet.
Hours:     not published at 70 px.
Expect:    no number published at 70 px, which is what the reference's file says; its tables say 84 px and 78.5 %
           (`bigg14_84px_t8.py`).
Table:     none.
Differs:   from `model_bigG/70_8` of the t5x branch in the data: that file names LAION-400M, the published models were
           trained on DataComp-1B. The residual scale of both towers' initial weights takes the depths 48 and 32, that
           file the constant 12 (D1; `--model.image.blocks.init-depth 12 --model.text.blocks.init-depth 12` gives it).
Notes:     Decay and the kind of both towers' initial weights are those of the reference's t5x branch, which trained
           bigG/14. Captions and prompts are cut to 8 tokens by part of speech (nouns first), as the reference trains
           and scores.
"""

from clipa_eqx import T5X_DECAY, ColorConfig, Duration, ExperimentConfig, MeshConfig, pretrain_stage, stage_model


def config() -> ExperimentConfig:
    batch_size = 65_536
    # 10,000 times the 1,281,167 images of ImageNet: 12.8 billion pairs.
    steps = 10_000 * 1_281_167 // batch_size
    return pretrain_stage(
        stage_model("bigG/14", image_size=70, length=8, image_init="scaled", remat="both"),
        records="data/datacomp1b",
        batch_size=batch_size,
        duration=Duration(steps=steps),
        base_lr=4e-6,  # peak 1.024e-3
        warmup=Duration(fraction=3200 / steps),
        text_reduction="syntax",
        color=ColorConfig(),
        decay=T5X_DECAY,
        mu_dtype="bfloat16",
        # Parameters and both moments take 23 GiB; each device holds a sixteenth.
        mesh=MeshConfig(fsdp=16),
        score_every_steps=4000,
        checkpoint_every_steps=2000,
    )
