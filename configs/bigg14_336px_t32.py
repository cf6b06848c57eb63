"""bigG/14 fine-tuning: 336 px, 32 text tokens, 131 million pairs, 40 % of the patches masked.

Command:   python scripts/train.py configs/bigg14_336px_t32.py --workdir runs/bigg14_336px_t32
Hardware:  TPU pod slice; laid out for 512 TPU v3 cores (16 GB each). Any number of devices that is a multiple of 16
           works.
Hours:     1,744 A100 hours, the difference of the published 23,742 for all three stages and 21,998 for the first
           two; not re-run here.
Expect:    83.0 % zero-shot ImageNet top-1 with DataComp-1B. Published by the reference, not re-run here.
Notes:     Decay and initializers are those of the reference's t5x branch, as in bigg14_70px_t8.py.
"""

from dataclasses import replace

from clipa_eqx import ColorConfig, ExperimentConfig, InitConfig, MeshConfig, finetune_stage, preset


def config() -> ExperimentConfig:
    model = preset("bigG/14", image_size=336, length=32)
    model = replace(
        model,
        image=replace(model.image, blocks=replace(model.image.blocks, remat="full", init="scaled"), mask_ratio=0.4),
        text=replace(model.text, blocks=replace(model.text.blocks, remat="full")),
    )
    return finetune_stage(
        model,
        init=InitConfig(source="runs/bigg14_224px_t32"),
        records="data/datacomp1b",
        batch_size=16_384,
        pairs=131_072_000,
        base_lr=1e-7,  # peak 6.4e-6
        warmup_pairs=26_214_400,
        color=ColorConfig(),
        # As the reference's t5x branch, which trained bigG/14: everything except norms, biases, positions and
        # temperature is decayed.
        decay=((r"(.*/)?(norm[12]?/weight|bias|position|log_temperature)", 0.0), (".*", 1.0)),
        mu_dtype="bfloat16",
        # Parameters and both moments take 23 GiB; each device holds a sixteenth.
        mesh=MeshConfig(fsdp=16),
    )
