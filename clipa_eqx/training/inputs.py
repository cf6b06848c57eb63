"""The inputs of a run: training batches and prepared evaluations."""

import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from clipa_eqx.data.array_record_reader import RecordSource, open_records
from clipa_eqx.data.first_records import check_captions
from clipa_eqx.data.images.evaluation import eval_image
from clipa_eqx.data.mixture import Mixture
from clipa_eqx.data.prefetch import BatchIterator
from clipa_eqx.data.stream import eval_stream, train_stream
from clipa_eqx.data.transforms import TrainTransform
from clipa_eqx.errors import DataError, counted
from clipa_eqx.evals.zero_shot import (
    ZeroShotConfig,
    ZeroShotTask,
    ZeroShotTransform,
    check_set,
    log_prompts,
    make_task,
    warn_of_padding,
)
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.progress import waiting
from clipa_eqx.tokenizer.wordpiece import Tokenizer

_log = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """A zero-shot evaluation that is ready to run.

    Attributes:
        number: its position in ``config.zero_shot``.
    """

    number: int
    name: str
    config: ZeroShotConfig
    source: RecordSource
    task: ZeroShotTask


def open_sources(config: ExperimentConfig) -> Mixture:
    """The record folders of a run.

    Raises:
        DataError: a folder is missing, damaged, empty or without captions; the message names it.
    """
    with waiting("opening the data"):
        mixture = Mixture(
            sources=tuple(open_records(source.folder) for source in config.data.sources),
            weights=tuple(source.weight for source in config.data.sources),
        )
        for source in mixture.sources:
            check_captions(source)
    return mixture


def log_inputs(
    config: ExperimentConfig, mixture: Mixture, evaluations: Sequence[Evaluation], tokenizer: Tokenizer
) -> None:
    """Log what a run trains and scores on, and warn of what wastes samples or loses words."""
    if repeats := mixture.repeats(config.batch_size):
        _log.warning(
            "batch_size %d is larger than the data: %s. A batch then has the same pair several times, and the loss "
            "counts its copies as wrong pairs. Use more data, or a batch_size of at most %d",
            config.batch_size,
            "; ".join(repeats),
            mixture.largest_batch,
        )
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (workers := config.data.stream.workers) > available:
        _log.warning(
            "data.stream.workers is %d, and this machine has %s for them: they wait for each other, and each takes "
            "memory. Set --data.stream.workers %d",
            workers,
            counted(available, "processor"),
            available,
        )
    for evaluation in evaluations:
        warn_of_padding(evaluation.config, records=len(evaluation.source))
        log_prompts(evaluation.task, tokenizer)


def train_transform(config: ExperimentConfig, tokenizer: Tokenizer) -> TrainTransform:
    """The transform of a record into a batch row."""
    return TrainTransform(
        image=config.data.image,
        tokenizer=tokenizer,
        length=config.model.text.length,
        reduction=config.data.text_reduction,
    )


def train_batches(
    config: ExperimentConfig, mixture: Mixture, tokenizer: Tokenizer, *, start_step: int
) -> BatchIterator:
    """This process's rows of the batches from ``start_step`` on."""
    return train_stream(
        mixture,
        train_transform(config, tokenizer),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        on_bad_record=config.data.on_bad_record,
        config=config.data.stream,
    )


def prepare_evaluations(config: ExperimentConfig, tokenizer: Tokenizer) -> tuple[Evaluation, ...]:
    """Open and check every evaluation set before training starts; names are the folders' last parts, made unique.

    Raises:
        ConfigError: a template or a setting is wrong.
        DataError: a folder is missing, damaged or empty, or has no class names or no labels.
    """
    evaluations: list[Evaluation] = []
    for number, one in enumerate(config.zero_shot):
        try:
            source = open_records(one.data)
            check_set(one, source)
        except DataError as error:
            raise DataError(
                f"evaluation {number}: {error}. Set --zero-shot.{number}.data, or --zero-shot none for no scores"
            ) from error
        task = make_task(
            one,
            manifest_class_names=source.manifest.class_names,
            manifest_templates=source.manifest.templates,
            tokenizer=tokenizer,
            length=config.model.text.length,
        )
        stem = Path(one.data).name
        taken = {evaluation.name for evaluation in evaluations}
        name = stem if stem not in taken else f"{stem}{len(evaluations)}"
        evaluations.append(Evaluation(number, name, one, source, task))
    return tuple(evaluations)


def eval_batches(config: ExperimentConfig, evaluation: Evaluation) -> BatchIterator:
    """This process's rows of an evaluation; over all processes each record appears once."""
    transform = ZeroShotTransform(
        prepare_image=partial(eval_image, config=config.eval_image), max_labels=evaluation.config.max_labels
    )
    return eval_stream(
        evaluation.source,
        transform,
        batch_size=evaluation.config.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        config=config.data.stream,
    )
