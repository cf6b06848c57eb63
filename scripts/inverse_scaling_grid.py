"""The grid of the study: model sizes, token counts, and the steps that give all runs of a size the same compute."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from clipa_eqx.data.images.affine import AffineConfig
from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.durations import Duration
from clipa_eqx.experiment import CheckpointConfig, DataConfig, DataSource, ExperimentConfig
from clipa_eqx.flops import step_flops
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig
from clipa_eqx.optim import OptimConfig
from clipa_eqx.schedules import Cosine
from clipa_eqx.surgery.init_config import InitConfig

VOCAB_SIZE = 2000
BATCH_SIZE = 128
PATCH = 8  # pixels
PEAK_LR = 1e-3


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model size: width of both towers, and the depth of each."""

    name: str
    width: int
    image_depth: int
    text_depth: int


@dataclass(frozen=True, kw_only=True)
class Point:
    """Token counts of a pre-training: an image size in pixels, and the length of a text."""

    pixels: int
    text_tokens: int

    @property
    def image_tokens(self) -> int:
        """Tokens of an image: its patches and the class token."""
        return 1 + (self.pixels // PATCH) ** 2


SIZES = (
    Size(name="small", width=32, image_depth=2, text_depth=1),
    Size(name="medium", width=64, image_depth=3, text_depth=2),
    Size(name="large", width=96, image_depth=4, text_depth=2),
)

FULL = Point(pixels=24, text_tokens=8)
POINTS = (
    FULL,
    Point(pixels=8, text_tokens=8),
    Point(pixels=16, text_tokens=8),
    Point(pixels=24, text_tokens=2),
    Point(pixels=24, text_tokens=4),
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Compute of both stages, in steps at full size. A size's budget in operations is that of its full-size steps.

    Attributes:
        pretrain: steps of the pre-training at full size; runs with fewer tokens do more steps.
        tune: steps of the fine-tuning, which is at full size for all runs.
    """

    pretrain: int
    tune: int


STUDY = Budget(pretrain=1000, tune=250)
SHORT = Budget(pretrain=2, tune=1)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the grid: a pre-training, and a fine-tuning at full size."""

    size: Size
    point: Point
    seed: int
    budget: Budget

    @property
    def name(self) -> str:
        """Name of its folder, such as ``small-16px-t8-seed0``."""
        return f"{self.size.name}-{self.point.pixels}px-t{self.point.text_tokens}-seed{self.seed}"

    @property
    def step_flops(self) -> int:
        """Operations of a step of the pre-training."""
        return step_flops(model(self.size, self.point), batch_size=BATCH_SIZE).total

    @property
    def full_step_flops(self) -> int:
        """Operations of a step at full size."""
        return step_flops(model(self.size, FULL), batch_size=BATCH_SIZE).total

    @property
    def pretrain_steps(self) -> int:
        """Steps of the pre-training: the budget in operations over the operations of a step, rounded."""
        return max(1, round(self.budget.pretrain * self.full_step_flops / self.step_flops))

    @property
    def flops(self) -> int:
        """Operations of both stages."""
        return self.pretrain_steps * self.step_flops + self.budget.tune * self.full_step_flops

    @property
    def pairs(self) -> int:
        """Pairs of both stages."""
        return BATCH_SIZE * (self.pretrain_steps + self.budget.tune)


def grid(seeds: Sequence[int], budget: Budget) -> list[Run]:
    """All runs in their order: each point for each size with the first seed, then full size with the other seeds."""
    first, *others = seeds
    order = [(point, first) for point in POINTS] + [(FULL, seed) for seed in others]
    return [Run(size=size, point=point, seed=seed, budget=budget) for point, seed in order for size in SIZES]


def model(size: Size, point: Point) -> CLIPConfig:
    """The towers of a run. Image positions are computed; learned text positions are resized for the fine-tuning.

    On CPUs, computing activations again (``remat="dots"``) takes less time than loading them.
    """
    heads = size.width // 32
    mlp_dim = 4 * size.width
    return CLIPConfig(
        image=VisionConfig(
            blocks=BlockConfig(width=size.width, depth=size.image_depth, mlp_dim=mlp_dim, heads=heads, remat="dots"),
            image_size=(point.pixels, point.pixels),
            patch_size=(PATCH, PATCH),
            embed=128,
        ),
        text=TextConfig(
            blocks=BlockConfig(
                width=size.width, depth=size.text_depth, mlp_dim=mlp_dim, heads=heads, init="scaled", remat="dots"
            ),
            length=point.text_tokens,
            vocab=VOCAB_SIZE,
            position="learned",
            pool="gap",
            embed=128,
        ),
    )


def pretraining(run: Run, *, data: str) -> ExperimentConfig:
    """The config of a run's first stage; ``data`` is the folder with the records and the vocabulary."""
    pixels = (run.point.pixels, run.point.pixels)
    return ExperimentConfig(
        model=model(run.size, run.point),
        data=DataConfig(
            sources=(DataSource(folder=f"{data}/train"),),
            image=ImageConfig(
                size=pixels,
                min_area=1.0,
                max_area=1.0,
                affine=AffineConfig(max_rotate_degrees=15.0, scale=(0.6, 1.1), max_shift=0.1),
            ),
            vocab=f"{data}/vocab.txt",
        ),
        optim=OptimConfig(
            peak_lr=PEAK_LR,
            schedules=((".*", Cosine(warmup=Duration(fraction=0.05))),),
            clip_norm=1.0,
            max_temperature=100.0,
        ),
        batch_size=BATCH_SIZE,
        duration=Duration(steps=run.pretrain_steps),
        seed=run.seed,
        eval_image=EvalImageConfig(size=pixels, resize="squash"),
        checkpoint=CheckpointConfig(every_steps=250, keep=1),
        log_every_steps=50,
    )


def tuning(run: Run, *, data: str, source: str) -> ExperimentConfig:
    """The config of a run's second stage, at full size; ``source`` is the run folder of the first stage."""
    full = pretraining(dataclasses.replace(run, point=FULL), data=data)
    return dataclasses.replace(
        full,
        duration=Duration(steps=run.budget.tune),
        init=InitConfig(source=source, resize_text=run.point.text_tokens != FULL.text_tokens),
    )
