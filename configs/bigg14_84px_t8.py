"""bigG/14 pre-training: 84 px (36 patches), 8 text tokens, 12.8 billion pairs.

Command:   python scripts/train.py configs/bigg14_84px_t8.py --workdir runs/bigg14_84px_t8
Hardware:  TPU pod slice; laid out for 512 TPU v3 cores (16 GB each). The number of devices is a multiple of 16 that
           divides the batch; with fewer, each needs more memory.
Plan:      per device 4.39 GiB on v3:16x16 (`scripts/plan.py`, docs/performance.md).
Samples:   12,811,632,640 pairs: 195,490 steps of 65,536, 10,000 times the images of ImageNet.
Hours:     21,998 A100 hours published for this stage and the one at 224 px together; not re-run here.
Expect:    78.5 % zero-shot ImageNet top-1 with DataComp-1B. Published by the reference, not re-run here.
Table:     12.8B@84 with DataComp-1B; first stage of 12.8B@84 + 512M@224 and of 12.8B@84 + 512M@224 + 128M@336.
Differs:   The reference has no file for 84 px, although its tables say 84 px. This one is `model_bigG/70_8` of its t5x
           branch with another image size; it differs from that file further in the data (LAION-400M there). The
           residual scale of both towers' initial weights takes the depths 48 and 32, that file the constant 12 (D1;
           `--model.image.blocks.init-depth 12 --model.text.blocks.init-depth 12` gives it).
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
        stage_model("bigG/14", image_size=84, length=8, image_init="scaled", remat="both"),
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
