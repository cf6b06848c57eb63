"""H/14 pre-training: 84 px (36 patches), 8 text tokens, 12.8 billion pairs.

Command:   python scripts/train.py configs/h14_84px_t8.py --workdir runs/h14_84px_t8
Hardware:  TPU pod slice; laid out for 512 TPU v3 cores (16 GB each). Any number of devices that is a multiple of 8
           works.
Hours:     7,776 A100 hours published for this stage and the one at 224 px together; not re-run here.
Expect:    72.1 % zero-shot ImageNet top-1 with LAION-2B, 75.6 % with DataComp-1B
           (--data.sources.0.folder data/datacomp1b). Published by the reference, not re-run here.
Notes:     Captions and prompts are cut to 8 tokens by part of speech (nouns first), as the reference trains and
           scores.
"""

from dataclasses import replace

from clipa_eqx import ColorConfig, Duration, ExperimentConfig, MeshConfig, preset, pretrain_stage


def config() -> ExperimentConfig:
    batch_size = 65_536
    # 10,000 times the 1,281,167 images of ImageNet: 12.8 billion pairs.
    steps = 10_000 * 1_281_167 // batch_size
    model = preset("H/14", image_size=84, length=8)
    model = replace(model, image=replace(model.image, blocks=replace(model.image.blocks, remat="full")))
    return pretrain_stage(
        model,
        records="data/laion2b",
        batch_size=batch_size,
        duration=Duration(steps=steps),
        base_lr=8e-6,  # peak 2.048e-3
        warmup=Duration(fraction=3200 / steps),
        text_reduction="syntax",
        color=ColorConfig(),
        mu_dtype="bfloat16",
        # Parameters and both moments take 9 GiB; each device holds an eighth.
        mesh=MeshConfig(fsdp=8),
    )
