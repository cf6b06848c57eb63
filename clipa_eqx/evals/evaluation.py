"""Evaluations of every kind: opened and checked before long work, then run on any mesh and number of processes."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from clipa_eqx.agreement import check_same_everywhere
from clipa_eqx.data.array_record_reader import RecordSource, open_records
from clipa_eqx.data.load_batch import EvalTransformFn
from clipa_eqx.data.prefetch import BatchIterator, StreamConfig
from clipa_eqx.data.stream import eval_stream
from clipa_eqx.evals.contrastive import ContrastiveConfig, ContrastiveResult, evaluate_contrastive
from clipa_eqx.evals.counting import ZeroShotResult
from clipa_eqx.evals.embeddings import Captions, ImageTransform, check_captioned, read_captions, with_progress
from clipa_eqx.evals.features import FittedLabels, PrepareImage, common_classes, read_fitted_labels
from clipa_eqx.evals.few_shot import FewShotConfig, FewShotResult, choose_all_shots, evaluate_few_shot
from clipa_eqx.evals.labels import check_labels
from clipa_eqx.evals.linear_probe import LinearProbeConfig, LinearProbeResult, evaluate_linear_probe, hold_out
from clipa_eqx.evals.retrieval import RetrievalConfig, RetrievalResult, evaluate_retrieval
from clipa_eqx.evals.zero_shot import (
    ZeroShotConfig,
    ZeroShotTask,
    ZeroShotTransform,
    check_set,
    evaluate_zero_shot,
    log_prompts,
    make_task,
    warn_of_padding,
)
from clipa_eqx.models.clip import CLIP
from clipa_eqx.tokenizer.wordpiece import Tokenizer

_log = logging.getLogger(__name__)

EvaluationConfig = ZeroShotConfig | RetrievalConfig | ContrastiveConfig | FewShotConfig | LinearProbeConfig


EvaluationResult = ZeroShotResult | RetrievalResult | ContrastiveResult | FewShotResult | LinearProbeResult


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """An evaluation that is ready to run.

    Attributes:
        config: the kind of evaluation and its settings.
        source: the records that are scored.
        train: the records that a classifier is fitted to; None where there is none.
        task: class names and prompts of a zero-shot evaluation; None for other kinds.
        targets: captions or labels of all records, once ``read_targets`` has read them; None for zero-shot.
    """

    config: EvaluationConfig
    source: RecordSource
    train: RecordSource | None = None
    task: ZeroShotTask | None = None
    targets: Captions | FittedLabels | None = None


def suite_of(config: EvaluationConfig) -> str:
    """The name of a kind of evaluation, which is also the name of its field in a config and of its metrics."""
    match config:
        case ZeroShotConfig():
            return "zero_shot"
        case RetrievalConfig():
            return "retrieval"
        case ContrastiveConfig():
            return "contrastive"
        case FewShotConfig():
            return "few_shot"
        case LinearProbeConfig():
            return "linear_probe"


def names_of(configs: Sequence[EvaluationConfig]) -> list[str]:
    """A name for each evaluation in logs: the suite, and the last part of its folder, made unique by a number.

    >>> names_of([RetrievalConfig(data="a/coco"), RetrievalConfig(data="b/coco"), ContrastiveConfig(data="a/coco")])
    ['retrieval/coco', 'retrieval/coco1', 'contrastive/coco']
    """
    names: list[str] = []
    for config in configs:
        name = f"{suite_of(config)}/{Path(config.data).name}"
        of_suite = sum(suite_of(other) == suite_of(config) for other in configs[: len(names)])
        names.append(name if name not in names else f"{name}{of_suite}")
    return names


def check_evaluation(config: EvaluationConfig) -> tuple[RecordSource, RecordSource | None]:
    """Open the record folders of an evaluation, and check what can be checked without a model.

    Returns:
        The folder that is scored, and the one that a classifier is fitted to.

    Raises:
        ConfigError: a template has no ``{}``, or there is none.
        DataError: a folder is missing, damaged, empty or of another kind than the evaluation needs.
    """
    source = open_records(config.data)
    match config:
        case ZeroShotConfig():
            check_set(config, source)
        case RetrievalConfig() | ContrastiveConfig():
            check_captioned(source)
        case FewShotConfig() | LinearProbeConfig():
            train = open_records(config.train)
            classes = common_classes(train, source)
            for one in (train, source):
                check_labels(one, classes=classes, max_labels=1)
            return source, train
    return source, None


def open_evaluation(config: EvaluationConfig, *, tokenizer: Tokenizer, length: int) -> Evaluation:
    """Open, check and prepare an evaluation.

    Args:
        length: tokens per text, that of the text tower.

    Raises:
        ConfigError: a template has no ``{}``, or there is none.
        DataError: a folder is missing, damaged, empty or of another kind than the evaluation needs.
    """
    source, train = check_evaluation(config)
    if not isinstance(config, ZeroShotConfig):
        return Evaluation(config=config, source=source, train=train)
    task = make_task(
        config,
        manifest_class_names=source.manifest.class_names,
        manifest_templates=source.manifest.templates,
        tokenizer=tokenizer,
        length=length,
    )
    return Evaluation(config=config, source=source, task=task)


def read_targets(evaluation: Evaluation, *, tokenizer: Tokenizer, length: int) -> Evaluation:
    """Read the captions or labels of all records, so that a bad one is found before long work, and read them once.

    All processes must call it together. Zero-shot labels are read with their images.

    Args:
        length: tokens per caption, that of the text tower.

    Raises:
        ConfigError: the processes have different evaluations, or another process found a bad record.
        DataError: a record is damaged or lacks a caption or label, or a class has too few training images.
    """
    check_same_everywhere(_identity(evaluation), what=f"data or settings of the evaluation on {evaluation.config.data}")
    config, source, train = evaluation.config, evaluation.source, evaluation.train
    if evaluation.targets is not None:
        return evaluation
    match config:
        case ZeroShotConfig():
            return evaluation
        case RetrievalConfig() | ContrastiveConfig():
            most = config.max_captions if isinstance(config, RetrievalConfig) else 1
            targets = read_captions(
                source, tokenizer=tokenizer, length=length, reduction=config.text_reduction, most=most
            )
        case FewShotConfig() | LinearProbeConfig():
            assert train is not None
            targets = read_fitted_labels(train, source)
            if isinstance(config, FewShotConfig):
                choose_all_shots(config, targets.train)
            else:
                hold_out(config, targets.train)
    return dataclasses.replace(evaluation, targets=targets)


def _identity(evaluation: Evaluation) -> str:
    """A text that differs between evaluations of different settings, prompts or records."""
    sources = [one for one in (evaluation.source, evaluation.train) if one is not None]
    shards = [one.manifest.table.contents() for one in sources]
    prompts = None if evaluation.task is None else dict(evaluation.task.about)
    return repr((evaluation.config, shards, prompts))


def log_evaluation(evaluation: Evaluation, tokenizer: Tokenizer) -> None:
    """Log what will be scored, and warn of what loses words or time."""
    if isinstance(evaluation.config, ZeroShotConfig) and evaluation.task is not None:
        warn_of_padding(evaluation.config, records=len(evaluation.source))
        log_prompts(evaluation.task, tokenizer)
    train, source = evaluation.train, evaluation.source
    if train is not None and train.manifest.table.contents() == source.manifest.table.contents():
        _log.warning(
            "%s: the classifier is scored on the records that it is fitted to, %s; its score says nothing about others",
            suite_of(evaluation.config),
            source.folder,
        )


def run_evaluation(
    evaluation: Evaluation,
    model: CLIP,
    *,
    tokenizer: Tokenizer,
    prepare_image: PrepareImage,
    stream: StreamConfig,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> EvaluationResult:
    """Score a model. All processes must call it together, and get the same result.

    Args:
        model: its arrays are on ``mesh`` (any sharding) or, without a mesh, on one device.
        tokenizer: makes the tokens of captions, as in training.
        prepare_image: from encoded bytes to pixels at the size of the model; picklable if ``stream`` has workers.
        stream: how batches are prepared ahead; it changes no score.
        progress: show a progress bar over the images.

    Raises:
        DataError: a record is damaged, or lacks what is scored.
        NonFiniteError: an embedding is NaN or infinite.
    """
    evaluation = read_targets(evaluation, tokenizer=tokenizer, length=model.config.text.length)
    config, source, train, task = evaluation.config, evaluation.source, evaluation.train, evaluation.task

    def batches(transform: EvalTransformFn) -> BatchIterator:
        return eval_stream(
            source,
            transform,
            batch_size=config.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            config=stream,
        )

    def shown(rows: Iterable[Mapping[str, np.ndarray]]) -> Iterable[Mapping[str, np.ndarray]]:
        return with_progress(rows, what="scoring", total=len(source)) if progress else rows

    match config:
        case ZeroShotConfig():
            assert task is not None
            with batches(ZeroShotTransform(prepare_image=prepare_image, max_labels=config.max_labels)) as rows:
                return evaluate_zero_shot(model, task, shown(rows), mesh=mesh)
        case RetrievalConfig() | ContrastiveConfig():
            captions = evaluation.targets
            assert isinstance(captions, Captions)
            with batches(ImageTransform(prepare_image=prepare_image)) as rows:
                if isinstance(config, RetrievalConfig):
                    return evaluate_retrieval(model, config, captions, shown(rows), mesh=mesh)
                return evaluate_contrastive(model, config, captions, shown(rows), mesh=mesh)
        case FewShotConfig() | LinearProbeConfig():
            labels = evaluation.targets
            assert train is not None
            assert isinstance(labels, FittedLabels)
            if isinstance(config, FewShotConfig):
                return evaluate_few_shot(
                    model, config, train, source, labels=labels, prepare_image=prepare_image, stream=stream, mesh=mesh
                )
            return evaluate_linear_probe(
                model, config, train, source, labels=labels, prepare_image=prepare_image, stream=stream, mesh=mesh
            )


def repeated_folders(configs: Sequence[EvaluationConfig]) -> list[str]:
    """Folders that two evaluations of one kind score."""
    found = [(suite_of(config), config.data) for config in configs]
    return sorted({data for suite, data in found if found.count((suite, data)) > 1})
