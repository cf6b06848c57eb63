"""L/14 fine-tuning: 224 px, 32 text tokens, 524 million pairs, 30 % of the patches masked.

Command:   python scripts/train.py configs/l14_224px_t32.py --workdir runs/l14_224px_t32
Hardware:  TPU pod slice; laid out for 512 TPU v3 cores (16 GB each). Any number of devices that is a multiple of 8
           works.
Hours:     4,008 A100 hours published for the stage at 84 px and this one together; not re-run here.
Expect:    79.7 % zero-shot ImageNet top-1 with DataComp-1B. Published by the reference, not re-run here.
Notes:     The reference has no L/14 file. This one is assembled from its H/14 recipe of the same stage; only the
           model differs.
"""

from dataclasses import replace

from clipa_eqx import ColorConfig, ExperimentConfig, InitConfig, MeshConfig, finetune_stage, preset


def config() -> ExperimentConfig:
    model = preset("L/14", image_size=224, length=32)
    model = replace(
        model,
        image=replace(model.image, blocks=replace(model.image.blocks, remat="full"), mask_ratio=0.3),
        text=replace(model.text, blocks=replace(model.text.blocks, remat="full")),
    )
    return finetune_stage(
        model,
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
