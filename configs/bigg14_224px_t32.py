"""bigG/14 fine-tuning: 224 px, 32 text tokens, 524 million pairs, 40 % of the patches masked.

Command:   python scripts/train.py configs/bigg14_224px_t32.py --workdir runs/bigg14_224px_t32
Hardware:  TPU pod slice; laid out for 512 TPU v3 cores (16 GB each). Any number of devices that is a multiple of 16
           works.
Hours:     21,998 A100 hours published for pre-training at 84 px and this stage together; not re-run here.
Expect:    82.5 % (the reference's JAX table) or 82.7 % (its torch table and open_clip) zero-shot ImageNet top-1 with
           DataComp-1B after pre-training at 84 px. Published by the reference, not re-run here.
Notes:     The recipe has no warm-up. Decay and initializers are those of the reference's t5x branch, as in
           bigg14_70px_t8.py.
"""

from dataclasses import replace

from clipa_eqx import ColorConfig, ExperimentConfig, InitConfig, MeshConfig, finetune_stage, preset


def config() -> ExperimentConfig:
    model = preset("bigG/14", image_size=224, length=32)
    model = replace(
        model,
        image=replace(model.image, blocks=replace(model.image.blocks, remat="full", init="scaled"), mask_ratio=0.4),
        text=replace(model.text, blocks=replace(model.text.blocks, remat="full")),
    )
    return finetune_stage(
        model,
        # The text positions are learned: 8 rows become 32.
        init=InitConfig(source="runs/bigg14_70px_t8", resize_text=True),
        records="data/datacomp1b",
        batch_size=16_384,
        pairs=524_288_000,
        base_lr=4e-7,  # peak 2.56e-5
        color=ColorConfig(),
        # As the reference's t5x branch, which trained bigG/14: everything except norms, biases, positions and
        # temperature is decayed.
        decay=((r"(.*/)?(norm[12]?/weight|bias|position|log_temperature)", 0.0), (".*", 1.0)),
        mu_dtype="bfloat16",
        # Parameters and both moments take 23 GiB; each device holds a sixteenth.
        mesh=MeshConfig(fsdp=16),
    )
