"""bigG/14 pre-training: 70 px (25 patches), 8 text tokens, 12.8 billion pairs.

Command:   python scripts/train.py configs/bigg14_70px_t8.py --workdir runs/bigg14_70px_t8
Hardware:  TPU pod slice; laid out for 512 TPU v3 cores (16 GB each). Any number of devices that is a multiple of 16
           works.
Hours:     21,998 A100 hours published for 12.8 billion pairs at 84 px and the stage at 224 px together; not re-run
           here.
Expect:    no number published at 70 px, which is what the reference's file says; its tables say 84 px and 78.5 %
           zero-shot ImageNet top-1 with DataComp-1B.
Notes:     Both towers start with normally distributed weights, as in the t5x branch; residual scales use the true
           depth, the branch the constant 12. Captions and prompts are cut to 8 tokens by part of speech (nouns
           first), as the reference trains and scores.
"""

from dataclasses import replace

from clipa_eqx import ColorConfig, Duration, ExperimentConfig, MeshConfig, preset, pretrain_stage


def config() -> ExperimentConfig:
    batch_size = 65_536
    # 10,000 times the 1,281,167 images of ImageNet: 12.8 billion pairs.
    steps = 10_000 * 1_281_167 // batch_size
    model = preset("bigG/14", image_size=70, length=8)
    model = replace(
        model,
        image=replace(model.image, blocks=replace(model.image.blocks, remat="full", init="scaled")),
        text=replace(model.text, blocks=replace(model.text.blocks, remat="full")),
    )
    return pretrain_stage(
        model,
        records="data/datacomp1b",
        batch_size=batch_size,
        duration=Duration(steps=steps),
        base_lr=4e-6,  # peak 1.024e-3
        warmup=Duration(fraction=3200 / steps),
        text_reduction="syntax",
        color=ColorConfig(),
        # As the reference's t5x branch, which trained bigG/14: everything except norms, biases, positions and
        # temperature is decayed.
        decay=((r"(.*/)?(norm[12]?/weight|bias|position|log_temperature)", 0.0), (".*", 1.0)),
        mu_dtype="bfloat16",
        # Parameters and both moments take 23 GiB; each device holds a sixteenth.
        mesh=MeshConfig(fsdp=16),
        score_every_steps=4000,
        checkpoint_every_steps=2000,
    )
