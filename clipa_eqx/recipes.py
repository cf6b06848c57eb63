"""The two stages of CLIPA training with the settings that all published recipes share, and a stage on small data.

Each file in ``configs/`` calls one of them and adds the settings of its own. docs/recipes.md lists the files, and in
which order they give each published model.
"""

from dataclasses import replace
from typing import Literal

from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.color import ColorConfig
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.durations import NO_TIME, Duration
from clipa_eqx.errors import ConfigError
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.experiment import CheckpointConfig, DataConfig, DataSource, ExperimentConfig
from clipa_eqx.losses.config import LossConfig
from clipa_eqx.models.blocks import Remat
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.layers import InitStyle
from clipa_eqx.models.pool import ImagePool
from clipa_eqx.models.presets import preset
from clipa_eqx.optim import DEFAULT_DECAY, OptimConfig
from clipa_eqx.precision import Precision
from clipa_eqx.schedules import Cosine
from clipa_eqx.sharding import MeshConfig
from clipa_eqx.surgery.init_config import InitConfig

_REMAT: dict[str, tuple[Remat, Remat]] = {
    "none": ("none", "none"),
    "dots": ("dots", "dots"),
    "image": ("full", "none"),
    "both": ("full", "full"),
}
"""``BlockConfig.remat`` of the image and of the text tower."""


def stage_model(
    name: str,
    *,
    image_size: int,
    length: int,
    image_pool: ImagePool = "gap",
    image_init: InitStyle = "xavier",
    mask_ratio: float = 0.0,
    remat: Literal["none", "dots", "image", "both"] = "none",
) -> CLIPConfig:
    """A preset with the settings in which published recipes differ.

    Args:
        name: one of ``PRESETS``.
        image_size: pixels per side.
        length: tokens per text.
        image_pool: pooling of the image tower; the recipes with 32 text tokens from the start have "tok".
        image_init: initial weights of the image tower: "xavier", or "scaled" as in the reference's t5x branch.
        mask_ratio: fraction of the patches that training leaves out.
        remat: towers whose activations are computed again in the backward pass instead of stored; "dots" does so in
            both towers except for the matrix products, which costs nearly no operations.

    Raises:
        ConfigError: an unknown name, an image size that the patch does not divide, a ratio that leaves no patch, or
            another remat.
    """
    if remat not in _REMAT:
        raise ConfigError(f"remat of stage_model is {remat!r}; it must be one of {', '.join(map(repr, _REMAT))}")
    model = preset(name, image_size=image_size, length=length)
    image, text = model.image, model.text
    of_image, of_text = _REMAT[remat]
    image_blocks = replace(image.blocks, init=image_init, remat=of_image)
    text_blocks = replace(text.blocks, remat=of_text)
    return replace(
        model,
        image=replace(image, blocks=image_blocks, pool=image_pool, mask_ratio=mask_ratio),
        text=replace(text, blocks=text_blocks),
    )


def pretrain_stage(
    model: CLIPConfig,
    *,
    records: str,
    batch_size: int,
    duration: Duration,
    base_lr: float,
    warmup: Duration = NO_TIME,
    text_reduction: Literal["truncate", "syntax"] = "truncate",
    color: ColorConfig | None = None,
    decay: tuple[tuple[str, float], ...] = DEFAULT_DECAY,
    mu_dtype: Literal["float32", "bfloat16"] = "float32",
    mesh: MeshConfig | None = None,
    score_every_steps: int = 1000,
    checkpoint_every_steps: int = 1000,
) -> ExperimentConfig:
    """Many steps at a small image size, from random weights.

    Args:
        model: both towers; the image size is also that of the training and evaluation images.
        records: folder of training records.
        batch_size: pairs per step over all devices.
        duration: length of the stage.
        base_lr: peak learning rate per 256 pairs of a batch; the peak is ``base_lr * batch_size / 256``.
        warmup: linear rise of the learning rate; after it follows half a cosine to 0. A fraction scales with a run
            that flags make shorter; steps and samples do not.
        text_reduction: how captions and prompts longer than the text tower are cut: "truncate" keeps the first pieces,
            "syntax" the words of the most important classes.
        color: color jitter of training images; None for none.
        decay: rules for weight decay, as in ``OptimConfig``.
        mu_dtype: dtype in which the first moment is stored: "float32" or "bfloat16".
        mesh: how devices share the work; None splits the batch only.
        score_every_steps: period of zero-shot scoring on ``data/imagenet_val``, in steps.
        checkpoint_every_steps: period of the checkpoints, in steps.

    Raises:
        ConfigError: settings that contradict each other.
    """
    size = model.image.image_size
    return ExperimentConfig(
        model=model,
        data=DataConfig(
            sources=(DataSource(folder=records),),
            image=ImageConfig(size=size, color=color),
            text_reduction=text_reduction,
            # Per host; it changes no batch. Set it to what the hosts have.
            stream=StreamConfig(workers=32, threads=2),
        ),
        optim=OptimConfig(
            peak_lr=base_lr * batch_size / 256,
            decay=decay,
            schedules=((".*", Cosine(warmup=warmup)),),
            mu_dtype=mu_dtype,
        ),
        batch_size=batch_size,
        duration=duration,
        mesh=mesh or MeshConfig(),
        # On a TPU the reference multiplies in bfloat16 too, but keeps activations in float32.
        precision=Precision(compute="bfloat16"),
        eval_image=EvalImageConfig(size=size),
        zero_shot=(
            ZeroShotConfig(
                data="data/imagenet_val",
                class_names="imagenet",
                batch_size=1024,
                text_reduction=text_reduction,
                every_steps=score_every_steps,
            ),
        ),
        checkpoint=CheckpointConfig(every_steps=checkpoint_every_steps),
        loss=LossConfig(algorithm="sharded"),
    )


def finetune_stage(
    model: CLIPConfig,
    *,
    init: InitConfig,
    records: str,
    batch_size: int,
    pairs: int,
    base_lr: float,
    warmup_pairs: int = 0,
    resize: Literal["squash", "resize_small_crop"] = "squash",
    color: ColorConfig | None = None,
    decay: tuple[tuple[str, float], ...] = DEFAULT_DECAY,
    mu_dtype: Literal["float32", "bfloat16"] = "float32",
    mesh: MeshConfig | None = None,
    score_every_steps: int = 1000,
) -> ExperimentConfig:
    """Few steps at a larger image size and text length, from the weights of another stage.

    Args:
        init: the run to start from.
        pairs: length of the stage, in pairs.
        warmup_pairs: linear rise of the learning rate, in pairs of the complete stage. The config has its fraction of
            the stage, which scales with a run that flags make shorter.
        resize: how evaluation images are brought to size: "squash" ignores the aspect ratio, "resize_small_crop"
            scales the shorter side and crops the center.

    The other arguments are those of ``pretrain_stage``.

    Raises:
        ConfigError: settings that contradict each other.
    """
    steps, warmup_steps = pairs // batch_size, warmup_pairs // batch_size
    stage = pretrain_stage(
        model,
        records=records,
        batch_size=batch_size,
        duration=Duration(steps=steps),
        base_lr=base_lr,
        warmup=Duration(fraction=warmup_steps / steps) if steps and warmup_steps else NO_TIME,
        color=color,
        decay=decay,
        mu_dtype=mu_dtype,
        mesh=mesh,
        score_every_steps=score_every_steps,
    )
    return replace(stage, init=init, eval_image=replace(stage.eval_image, resize=resize))


def small_stage(
    model: CLIPConfig,
    *,
    records: str,
    batch_size: int,
    duration: Duration,
    peak_lr: float,
    warmup: Duration = NO_TIME,
    init: InitConfig | None = None,
) -> ExperimentConfig:
    """A stage on data of any size and on any machine: a single process reads the images, and nothing is scored.

    Gradients are clipped to the norm 1 and the temperature to 100, so that small batches are stable.

    Args:
        model: both towers; the image size is also that of the training and evaluation images.
        records: folder of training records.
        batch_size: pairs per step over all devices.
        duration: length of the stage.
        peak_lr: peak learning rate, for this batch size.
        warmup: linear rise of the learning rate; after it follows half a cosine to 0. A fraction scales with a run
            that flags make shorter; steps and samples do not.
        init: weights to start from; None starts with random weights.

    Raises:
        ConfigError: settings that contradict each other.
    """
    size = model.image.image_size
    return ExperimentConfig(
        model=model,
        data=DataConfig(sources=(DataSource(folder=records),), image=ImageConfig(size=size)),
        optim=OptimConfig(
            peak_lr=peak_lr, schedules=((".*", Cosine(warmup=warmup)),), clip_norm=1.0, max_temperature=100.0
        ),
        batch_size=batch_size,
        duration=duration,
        init=init,
        eval_image=EvalImageConfig(size=size),
        checkpoint=CheckpointConfig(every_steps=100),
        log_every_steps=10,
    )
