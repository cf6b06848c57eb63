"""The second stage of configs/minimal.py: 128 px (64 patches), 32 text tokens, from the weights of the first.

Command:   python scripts/train.py configs/minimal_tune.py --workdir runs/tuned --data.sources.0.folder data/mine
Hardware:  two CPU cores, or any number of accelerators that divides the batch
Time:      see docs/first_hour.md; `--duration.samples 1000` is a short try
Expect:    a lower loss than at the end of the first stage
Notes:     It starts from runs/first; `--init-from RUN` names another run.
"""

from clipa_eqx import Duration, ExperimentConfig, InitConfig, preset, small_stage


def config() -> ExperimentConfig:
    return small_stage(
        preset("Ti/16", image_size=128, length=32),
        # The text positions are learned: 16 rows become 32. Image positions are computed for any size.
        init=InitConfig(source="runs/first", resize_text=True),
        records="data/mine",
        batch_size=128,
        duration=Duration(samples=10_000),
        peak_lr=3e-4,
        warmup=Duration(fraction=0.1),
    )
