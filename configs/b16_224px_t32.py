"""B/16 fine-tuning: 224 px, 32 text tokens, 131 million pairs, no masking.

Command:   python scripts/train.py configs/b16_224px_t32.py --workdir runs/b16_224px_t32
Hardware:  TPU pod slice or GPUs; any number of devices that divides the batch.
Hours:     about 2 days on 8 A100 published for the nearest setting, pre-training included; not re-run here.
Expect:    63.2 % zero-shot ImageNet top-1 published after pre-training at 112 px with 16 text tokens; none for 32.
Notes:     These recipes pool the class token.
"""

from dataclasses import replace

from clipa_eqx import ExperimentConfig, InitConfig, finetune_stage, preset


def config() -> ExperimentConfig:
    model = preset("B/16", image_size=224, length=32)
    model = replace(model, image=replace(model.image, blocks=replace(model.image.blocks, remat="full"), pool="tok"))
    return finetune_stage(
        model,
        init=InitConfig(source="runs/b16_112px_t32"),
        records="data/laion400m",
        batch_size=32_768,
        pairs=131_072_000,
        base_lr=8e-7,  # peak 1.024e-4
        warmup_pairs=26_214_400,
        resize="resize_small_crop",
        score_every_steps=500,
    )
