"""A first run on your own pairs: Ti/16 at 64 px (16 patches), 16 text tokens. docs/first_hour.md explains it.

Command:   python scripts/train.py configs/minimal.py --workdir runs/first --data.sources.0.folder data/mine
Hardware:  two CPU cores, or any number of accelerators that divides the batch
Time:      see docs/first_hour.md; `--duration.samples 5000` is a short try, and the warm-up shrinks with it
Expect:    a loss below that of chance, ln(128) = 4.85; how far below depends on the data
Notes:     Any record folder with captions works. Nothing is scored during the run.
"""

from clipa_eqx import Duration, ExperimentConfig, preset, small_stage


def config() -> ExperimentConfig:
    return small_stage(
        preset("Ti/16", image_size=64, length=16),
        records="data/mine",
        batch_size=128,
        duration=Duration(samples=50_000),
        peak_lr=1e-3,
        warmup=Duration(fraction=0.05),
    )
