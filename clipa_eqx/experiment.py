"""The config of a training run: everything that determines it, as one frozen value."""

import math
from dataclasses import dataclass, field
from typing import Literal

from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.load_batch import OnBadRecord
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.durations import Duration
from clipa_eqx.ema import EmaConfig
from clipa_eqx.errors import ConfigError
from clipa_eqx.evals.contrastive import ContrastiveConfig
from clipa_eqx.evals.evaluation import EvaluationConfig, repeated_folders
from clipa_eqx.evals.few_shot import FewShotConfig
from clipa_eqx.evals.guard import GuardConfig
from clipa_eqx.evals.linear_probe import LinearProbeConfig
from clipa_eqx.evals.retrieval import RetrievalConfig
from clipa_eqx.evals.score_names import score_names_of
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.flops import StepFlops, step_flops
from clipa_eqx.losses.config import LossConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.kernels import AttentionChoice, cudnn_problems, cudnn_refusal
from clipa_eqx.optim import OptimConfig, trained_leaves
from clipa_eqx.precision import Precision
from clipa_eqx.sharding import MeshConfig
from clipa_eqx.surgery.init_config import InitConfig, abstract_model
from clipa_eqx.surgery.low_rank import ranks
from clipa_eqx.surgery.operations import lora_of
from clipa_eqx.tokenizer.reduce import Reduction
from clipa_eqx.trees import leaves_by_path


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A record folder and its share of the samples.

    Attributes:
        folder: records with their manifest; a local path or ``gs://``.
        weight: its share of the samples is this over the sum of all weights, exactly as the decimal number is written.

    Raises:
        ConfigError: an empty folder, or a weight that is not positive and finite.
    """

    folder: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.folder == "":
            raise ConfigError("a data source has an empty folder; give a path")
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ConfigError(f"data source {self.folder} has weight {self.weight}; it must be a positive number")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training data.

    Attributes:
        sources: one or several record folders, mixed by weight. An epoch is as many samples as they have records.
        image: size and augmentation of training images.
        text_reduction: how captions longer than the text tower are shortened. "truncate" keeps the first pieces,
            "syntax" the words of the most important classes (nouns, then adjectives, then verbs), "random" pieces at
            random, "block" a random run of neighboring pieces; all keep the order.
        vocab: a vocabulary file or a saved tokenizer's folder; ``None`` is the BERT vocabulary of the package.
        on_bad_record: "error" stops at a record that cannot be read; "substitute" takes another of the same source,
            sampled from (seed, sample), and counts it as ``bad_records`` in the metrics.
        stream: how batches are prepared ahead; it changes no batch.

    Raises:
        ConfigError: no source, a folder that is named twice, or an empty ``vocab``.
    """

    sources: tuple[DataSource, ...]
    image: ImageConfig
    text_reduction: Reduction = "truncate"
    vocab: str | None = None
    on_bad_record: OnBadRecord = "error"
    stream: StreamConfig = field(default_factory=StreamConfig)

    def __post_init__(self) -> None:
        if self.vocab == "":
            raise ConfigError("data.vocab is empty; give a path")
        folders = [source.folder for source in self.sources]
        if not folders:
            raise ConfigError("data.sources is empty; name at least one record folder")
        repeated = sorted({folder for folder in folders if folders.count(folder) > 1})
        if repeated:
            raise ConfigError(
                f"data.sources names {', '.join(repeated)} more than once; name it once, with more weight"
            )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """A checkpoint every ``every_steps`` steps and at the end; the latest ``keep`` are kept, and on request others.

    Attributes:
        every_steps: period of the checkpoints, in steps.
        keep: number of the latest checkpoints that are kept.
        keep_every_steps: also keep each checkpoint whose step is a multiple of this, a multiple of ``every_steps``.
        keep_best: also keep the checkpoint with the best score of this name, as in ``metrics.jsonl``, such as
            "zero_shot/imagenet/top1". A new best score is saved at once. Higher is better, except for a loss.
        checksums: record a checksum of each leaf, and compare it when the run resumes; False saves reading the state
            once more at each, and bit errors on the disk are then not noticed.

    Raises:
        ConfigError: a number below 1, or a ``keep_every_steps`` at which no checkpoint is saved.
    """

    every_steps: int = 1000
    keep: int = 3
    checksums: bool = True
    keep_every_steps: int | None = None
    keep_best: str | None = None

    def __post_init__(self) -> None:
        for name in ("every_steps", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"checkpoint.{name} is {getattr(self, name)}; it must be at least 1")
        kept = self.keep_every_steps
        if kept is not None and (kept < 1 or kept % self.every_steps):
            raise ConfigError(
                f"checkpoint.keep_every_steps is {kept}, but checkpoints are saved every {self.every_steps} steps; "
                f"give a multiple of {self.every_steps}"
            )


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """The Weights & Biases project that gets the metrics; needs the extra ``wandb``.

    Attributes:
        project: name of the project.
        entity: user or team that owns the project; ``None`` is the default of the account.
        name: name of the run in the project; ``None`` is the name of the run folder.
        offline: write the metrics into the run folder and send nothing.

    Raises:
        ConfigError: an empty project.
    """

    project: str
    entity: str | None = None
    name: str | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        if not self.project:
            raise ConfigError("wandb.project is empty; name a project, or leave out wandb")


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """A training run. Nothing else changes what is learned, except the contents of the files that it names.

    Attributes:
        model: both towers.
        data: the training data.
        optim: optimizer, schedules, and rules over leaf paths.
        batch_size: pairs per step over all devices.
        duration: length of the run in steps, samples or epochs.
        seed: seed of initial weights, order of the data, augmentation, masking and dropout.
        mesh: how devices share the work; it changes results by rounding only.
        precision: dtype of the towers' arithmetic.
        init: weights to start from; ``None`` starts with random weights.
        eval_image: how images are prepared for scoring; saved with the model.
        zero_shot: record folders to score during the run and at its end.
        retrieval: captioned record folders to score in the same way.
        contrastive: captioned record folders whose pairs are compared in the same way.
        few_shot: pairs of labeled record folders to score in the same way.
        linear_probe: pairs of labeled record folders to score in the same way.
        checkpoint: how often checkpoints are saved, and how many are kept.
        log_every_steps: period of the lines in ``metrics.jsonl``, in steps.
        loss: kind of loss, and how the devices compute it.
        wandb: metrics for Weights & Biases; ``None`` sends none.
        tensorboard: also write the metrics as event files for TensorBoard, into the folder ``tensorboard`` of the run
            folder; needs the package tensorboardX.
        on_non_finite: "stop" ends the run at a loss or gradient that is not finite; "skip" leaves parameters and
            optimizer as they are, counts the step as ``skipped_steps`` in the metrics, and ends the run after 10 such
            steps in a row.
        watchdog: seconds without a finished step, or a scored batch of an evaluation, after which every process writes
            its Python stacks into the run folder and ends. Phases without steps, such as compiling and saving, may take
            3 times as long. ``None`` waits forever.
        flight_steps: number of the last steps that the flight record keeps, see docs/training.md; 0 for none.
        micro_batch: pairs whose activations are in memory at once, over all devices; None takes the complete batch. The
            loss still compares all pairs of the batch, and the results differ by rounding only. Each pair is embedded
            twice.
        trainable: patterns of the leaves that are trained, such as ``(LORA_FACTORS,)`` or ``("image/head/.*",)``;
            all others are frozen: they stay as they are, bit for bit, have no gradient and no optimizer state, and are
            stored once, not in each checkpoint. ``optim.schedules`` may freeze more. None trains all that it does not.
        attention: kernel of attention in the towers: "cudnn" is cuDNN's flash attention, for NVIDIA GPUs and bfloat16,
            "xla" the plain products. "auto" takes cuDNN's where the devices, ``precision`` and the width of the heads
            allow it. Results differ by rounding only.
        ema: an average of the parameters, which is scored and saved as the model; ``None`` for none. Training itself is
            the same.
        guard: a score that may not fall far below that of the weights of ``init``; ``None`` for no limit.

    Raises:
        ConfigError: parts that contradict each other. The message lists all of them.
    """

    model: CLIPConfig
    data: DataConfig
    optim: OptimConfig
    batch_size: int
    duration: Duration
    seed: int = 0
    mesh: MeshConfig = field(default_factory=MeshConfig)
    precision: Precision = field(default_factory=Precision)
    init: InitConfig | None = None
    eval_image: EvalImageConfig
    zero_shot: tuple[ZeroShotConfig, ...] = ()
    retrieval: tuple[RetrievalConfig, ...] = ()
    contrastive: tuple[ContrastiveConfig, ...] = ()
    few_shot: tuple[FewShotConfig, ...] = ()
    linear_probe: tuple[LinearProbeConfig, ...] = ()
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log_every_steps: int = 50
    loss: LossConfig = field(default_factory=LossConfig)
    wandb: WandbConfig | None = None
    tensorboard: bool = False
    on_non_finite: Literal["stop", "skip"] = "stop"
    watchdog: float | None = 1800.0
    flight_steps: int = 32
    micro_batch: int | None = None
    attention: AttentionChoice = "auto"
    trainable: tuple[str, ...] | None = None
    ema: EmaConfig | None = None
    guard: GuardConfig | None = None

    def __post_init__(self) -> None:
        problems = [*_size_problems(self), *_batch_problems(self)]
        if self.seed < 0:
            problems.append(f"seed is {self.seed}; it must not be negative")
        if self.log_every_steps < 1:
            problems.append(f"log_every_steps is {self.log_every_steps}; it must be at least 1")
        if self.micro_batch is not None and not 1 <= self.micro_batch <= self.batch_size:
            problems.append(
                f"micro_batch is {self.micro_batch}; it must be from 1 to batch_size {self.batch_size}, or None"
            )
        if self.attention == "cudnn":
            compute, tensor = self.precision.compute, self.mesh.tensor
            if refused := cudnn_problems(self.model, compute=compute, tensor=tensor):
                problems.append(cudnn_refusal(refused))
        problems += _trainable_problems(self)
        if self.watchdog is not None and not self.watchdog > 0:
            problems.append(f"watchdog is {self.watchdog}; it must be a positive number of seconds, or None")
        if self.flight_steps < 0:
            problems.append(f"flight_steps is {self.flight_steps}; it must not be negative")
        if self.loss.kind == "sigmoid" and self.model.bias is None:
            problems.append(
                'loss.kind is "sigmoid", but the model has no bias; set model.bias, such as -10 with '
                "model.temperature 10"
            )
        if self.loss.kind == "softmax" and self.model.bias is not None:
            problems.append(
                'loss.kind is "softmax", but the model has a bias, which a softmax cannot learn; leave out model.bias, '
                'or set loss.kind to "sigmoid"'
            )
        if self.duration.fraction is not None:
            problems.append("duration is a fraction, but there is no run to take it of; give steps, samples or epochs")
        if self.duration.steps == 0:
            problems.append("duration is 0 steps; a run has at least 1")
        scores = score_names_of(self.evaluations)
        known = f"its scores are {', '.join(scores)}" if scores else "it has no evaluation"
        named = {"checkpoint.keep_best": self.checkpoint.keep_best, "guard.score": self.guard and self.guard.score}
        problems += [
            f"{field} {score!r} is no score of this run; {known}"
            for field, score in named.items()
            if score is not None and score not in scores
        ]
        repeated = repeated_folders(self.evaluations)
        if repeated:
            problems.append(
                f"{', '.join(repeated)} is named more than once by evaluations of one kind; score each record folder "
                "once"
            )
        if problems:
            raise ConfigError("experiment: " + "; ".join(problems))

    @property
    def evaluations(self) -> tuple[EvaluationConfig, ...]:
        """All evaluations: zero-shot, retrieval, contrastive, few-shot, linear probe."""
        return (*self.zero_shot, *self.retrieval, *self.contrastive, *self.few_shot, *self.linear_probe)


def operations_per_step(config: ExperimentConfig) -> StepFlops:
    """The operations of a step of a run, without gradients of what ``trainable`` freezes.

    Raises:
        ConfigError: patterns that do not fit the model.
    """
    if config.trainable is None:
        return step_flops(config.model, batch_size=config.batch_size)
    model = abstract_model(config.model, config.init)
    chosen = leaves_by_path(trained_leaves(config.optim, model, trainable=config.trainable))
    trained = {path for path, is_trained in chosen.items() if is_trained}
    return step_flops(config.model, batch_size=config.batch_size, trained=trained, ranks=ranks(model))


def _size_problems(config: ExperimentConfig) -> list[str]:
    wanted = config.model.image.image_size
    return [
        f"{name} is {size}, but model.image.image_size is {wanted}; set both to the same (height, width)"
        for name, size in (("data.image.size", config.data.image.size), ("eval_image.size", config.eval_image.size))
        if size != wanted
    ]


def _trainable_problems(config: ExperimentConfig) -> list[str]:
    init = config.init
    if config.trainable == ():
        return ["trainable is empty, so nothing is trained; name leaves by patterns, or leave it out to train all"]
    if config.trainable is not None and init is not None and init.optimizer:
        return ["init.optimizer resumes another run, which trained all leaves; leave out trainable"]
    is_some_frozen = any(schedule is None for _, schedule in config.optim.schedules)
    if config.trainable is None and init is not None and lora_of(init.surgery) is not None and not is_some_frozen:
        return [
            "init.surgery adds LoRA factors, but nothing says what is trained; set trainable to (LORA_FACTORS,) of "
            "clipa_eqx.surgery to train the factors alone, or to ('.*',) to train all leaves"
        ]
    return []


def _batch_problems(config: ExperimentConfig) -> list[str]:
    if config.batch_size < 2:
        return [f"batch_size is {config.batch_size}; a contrastive loss needs at least 2 pairs"]
    parts = math.prod(size for size in (config.mesh.data, config.mesh.fsdp) if size is not None)
    if config.batch_size % parts:
        return [
            f"batch_size {config.batch_size} does not divide over mesh data={config.mesh.data} x "
            f"fsdp={config.mesh.fsdp}; use a multiple of {parts}"
        ]
    return []
