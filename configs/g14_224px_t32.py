"""g/14 fine-tuning: 224 px, 32 text tokens, 524 million pairs, 30 % of the patches masked.

Command:   python scripts/train.py configs/g14_224px_t32.py --workdir runs/g14_224px_t32
Hardware:  TPU pod slice or GPUs. The number of devices is a multiple of 16 that divides the batch; with fewer, each
           needs more memory.
Plan:      per device 4.47 GiB on v3:16x16 (`scripts/plan.py`, docs/performance.md).
Samples:   524,288,000 pairs: 16,000 steps of 32,768.
Hours:     not published.
Expect:    no number published; no g/14 model was released.
Table:     none.
Differs:   The reference's `model_g` files do not load: the name g/14 is unknown to them (D25). Batch and masking are
           those of the text of its file for this stage in the t5x branch. The rest is that of the H/14 file with the
           same batch and masking, with the decay of the t5x branch.
Notes:     The initial weights matter only with `--init none`; then they are those of `g14_70px_t8.py`.
"""

from clipa_eqx import T5X_DECAY, ColorConfig, ExperimentConfig, InitConfig, MeshConfig, finetune_stage, stage_model


def config() -> ExperimentConfig:
    return finetune_stage(
        stage_model("g/14", image_size=224, length=32, image_init="scaled", mask_ratio=0.3, remat="both"),
        # The text positions are learned: 8 rows become 32.
        init=InitConfig(source="runs/g14_70px_t8", resize_text=True),
        records="data/datacomp1b",
        batch_size=32_768,
        pairs=524_288_000,
        base_lr=4e-7,  # peak 5.12e-5
        warmup_pairs=26_214_400,
        color=ColorConfig(),
        decay=T5X_DECAY,
        mu_dtype="bfloat16",
        # Parameters and both moments take 16 GiB; each device holds a sixteenth.
        mesh=MeshConfig(fsdp=16),
    )
