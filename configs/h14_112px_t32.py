"""H/14 pre-training: 112 px (64 patches), 32 text tokens, 7 epochs of LAION-400M.

Command:   python scripts/train.py configs/h14_112px_t32.py --workdir runs/h14_112px_t32
Hardware:  TPU pod slice or GPUs. The number of devices is a multiple of 8 that divides the batch; with fewer, each
           needs more memory.
Plan:      per device 8.39 GiB on v3:16x16 (`scripts/plan.py`, docs/performance.md).
Samples:   2,799,992,832 pairs: 7 epochs of 400 million, 85,449 steps of 32,768.
Hours:     not published.
Expect:    no number published.
Table:     none.
Differs:   from `model_h/112_32` in the residual scale of the text tower's initial weights, which takes its depth 24,
           that file the constant 12 (D1; `--model.text.blocks.init-depth 12` gives it).
Notes:     This recipe pools the class token, the released H/14 models do not. `h14_224px_t32.py` fine-tunes it with
           `--init-from runs/h14_112px_t32 --model.image.pool tok --data.sources.0.folder data/laion400m`.
"""

from clipa_eqx import Duration, ExperimentConfig, MeshConfig, pretrain_stage, stage_model


def config() -> ExperimentConfig:
    return pretrain_stage(
        stage_model("H/14", image_size=112, length=32, image_pool="tok", remat="image"),
        records="data/laion400m",
        batch_size=32_768,
        duration=Duration(epochs=7.0),
        base_lr=8e-6,  # peak 1.024e-3
        warmup=Duration(fraction=1600 / 85_449),  # 1,600 of the 85,449 steps on 400 million pairs
        # Parameters and both moments take 11 GiB; each device holds an eighth.
        mesh=MeshConfig(fsdp=8),
    )
