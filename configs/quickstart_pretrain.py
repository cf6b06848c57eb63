"""Stage 1 of `make quickstart`: many cheap steps on icons at 16 px (5 image tokens) and 4 text tokens.

Command:   make quickstart        (or: python scripts/train.py configs/quickstart_pretrain.py --workdir DIR)
Hardware:  two CPU cores
Time:      see "Quickstart result" in README.md
Expect:    see there; scripts/quickstart.py makes the data
"""

from clipa_eqx import (
    AffineConfig,
    BlockConfig,
    CheckpointConfig,
    CLIPConfig,
    Cosine,
    DataConfig,
    DataSource,
    Duration,
    EvalImageConfig,
    ExperimentConfig,
    ImageConfig,
    OptimConfig,
    TextConfig,
    VisionConfig,
    ZeroShotConfig,
)

DATA = "runs/quickstart/data"
VOCAB_SIZE = 2000
ICON_SIZE = 32
"""Pixels of a side of the icons in the records: larger ones take longer to decode, rotate and resize."""


def model(*, image_size: int, length: int) -> CLIPConfig:
    """The towers of a stage. Image positions are computed; learned text positions are resized between the stages.

    On CPUs, computing activations again (``remat="dots"``) takes less time than loading them.
    """
    return CLIPConfig(
        image=VisionConfig(
            blocks=BlockConfig(width=128, depth=4, mlp_dim=512, heads=4, remat="dots"),
            image_size=(image_size, image_size),
            patch_size=(8, 8),
            embed=128,
        ),
        text=TextConfig(
            blocks=BlockConfig(width=128, depth=1, mlp_dim=512, heads=4, init="scaled", remat="dots"),
            length=length,
            vocab=VOCAB_SIZE,
            position="learned",
            pool="gap",
            embed=128,
        ),
    )


def data(*, image_size: int) -> DataConfig:
    """Complete icons, rotated, scaled and shifted; no color jitter (docs/quickstart.md says why)."""
    return DataConfig(
        sources=(DataSource(folder=f"{DATA}/train"),),
        image=ImageConfig(
            size=(image_size, image_size),
            min_area=1.0,
            max_area=1.0,
            affine=AffineConfig(max_rotate_degrees=15.0, scale=(0.6, 1.1), max_shift=0.1),
        ),
        vocab=f"{DATA}/vocab.txt",
    )


def optim(peak_lr: float) -> OptimConfig:
    """The optimizer of a stage: cosine with 5 % of warm-up."""
    return OptimConfig(
        peak_lr=peak_lr,
        schedules=((".*", Cosine(warmup=Duration(fraction=0.05))),),
        clip_norm=1.0,
        max_temperature=100.0,
    )


def config() -> ExperimentConfig:
    return ExperimentConfig(
        model=model(image_size=16, length=4),
        data=data(image_size=16),
        optim=optim(1e-3),
        batch_size=128,
        duration=Duration(steps=2200),
        eval_image=EvalImageConfig(size=(16, 16), resize="squash"),
        zero_shot=(ZeroShotConfig(data=f"{DATA}/validation", templates=("{}",), every_steps=500),),
        checkpoint=CheckpointConfig(every_steps=1000, keep=2),
        log_every_steps=25,
    )
