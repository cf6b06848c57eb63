"""H/14 fine-tuning: 224 px, 32 text tokens, 524 million pairs, 30 % of the patches masked.

Command:   python scripts/train.py configs/h14_224px_t32.py --workdir runs/h14_224px_t32
Hardware:  TPU pod slice; laid out for 512 TPU v3 cores (16 GB each). Any number of devices that is a multiple of 8
           works.
Hours:     7,776 A100 hours published for the stage at 84 px and this one together; not re-run here.
Expect:    78.6 % zero-shot ImageNet top-1 with LAION-2B, 81.5 % with DataComp-1B. Published by the reference, not
           re-run here.
"""

from dataclasses import replace

from clipa_eqx import ColorConfig, ExperimentConfig, InitConfig, MeshConfig, finetune_stage, preset


def config() -> ExperimentConfig:
    model = preset("H/14", image_size=224, length=32)
    model = replace(
        model,
        image=replace(model.image, blocks=replace(model.image.blocks, remat="full"), mask_ratio=0.3),
        text=replace(model.text, blocks=replace(model.text.blocks, remat="full")),
    )
    return finetune_stage(
        model,
        # The text positions are learned: 8 rows become 32.
        init=InitConfig(source="runs/h14_84px_t8", resize_text=True),
        records="data/laion2b",
        batch_size=32_768,
        pairs=524_288_000,
        base_lr=4e-7,  # peak 5.12e-5
        warmup_pairs=26_214_400,
        color=ColorConfig(),
        mu_dtype="bfloat16",
        # Parameters and both moments take 9 GiB; each device holds an eighth.
        mesh=MeshConfig(fsdp=8),
    )
