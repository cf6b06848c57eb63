"""g/14 pre-training: 70 px (25 patches), 8 text tokens, 12.8 billion pairs.

Command:   python scripts/train.py configs/g14_70px_t8.py --workdir runs/g14_70px_t8
Hardware:  TPU pod slice or GPUs. The number of devices is a multiple of 16 that divides the batch; with fewer, each
           needs more memory.
Plan:      per device 3.10 GiB on v3:16x16 (`scripts/plan.py`, docs/performance.md).
Samples:   12,811,632,640 pairs: 195,490 steps of 65,536, 10,000 times the images of ImageNet.
Hours:     not published.
Expect:    no number published; no g/14 model was released.
Table:     none.
Differs:   The reference's `model_g` files do not load: the name g/14 is unknown to them (D25). The learning rate is
           that of the text of `model_g/70_8` of the t5x branch, the rest is that of `model_bigG/70_8`, and the data are
           those of the released bigG/14. The residual scale of both towers' initial weights takes the depths 40 and 32,
           that file the constant 12 (D1; `--model.image.blocks.init-depth 12 --model.text.blocks.init-depth 12` gives
           it).
Notes:     The text tower is that of the t5x branch, which is also bigG/14's; decay and the kind of both towers' initial
           weights are those of the branch too. Captions and prompts are cut to 8 tokens by part of speech (nouns
           first), as the reference trains and scores.
"""

from clipa_eqx import T5X_DECAY, ColorConfig, Duration, ExperimentConfig, MeshConfig, pretrain_stage, stage_model


def config() -> ExperimentConfig:
    batch_size = 65_536
    # 10,000 times the 1,281,167 images of ImageNet: 12.8 billion pairs.
    steps = 10_000 * 1_281_167 // batch_size
    return pretrain_stage(
        stage_model("g/14", image_size=70, length=8, image_init="scaled", remat="both"),
        records="data/datacomp1b",
        batch_size=batch_size,
        duration=Duration(steps=steps),
        base_lr=8e-6,  # peak 2.048e-3
        warmup=Duration(fraction=3200 / steps),
        text_reduction="syntax",
        color=ColorConfig(),
        decay=T5X_DECAY,
        mu_dtype="bfloat16",
        # Parameters and both moments take 16 GiB; each device holds a sixteenth.
        mesh=MeshConfig(fsdp=16),
        score_every_steps=4000,
        checkpoint_every_steps=2000,
    )
