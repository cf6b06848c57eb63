"""The inputs of a run: training batches and prepared evaluations."""

import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from jax.sharding import Mesh

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.first_records import check_captions
from clipa_eqx.data.images.evaluation import eval_image
from clipa_eqx.data.mixture import Mixture
from clipa_eqx.data.prefetch import BatchIterator
from clipa_eqx.data.stream import train_stream
from clipa_eqx.data.transforms import TrainTransform
from clipa_eqx.errors import DataError, counted
from clipa_eqx.evals.evaluation import (
    Evaluation,
    EvaluationResult,
    log_evaluation,
    names_of,
    open_evaluation,
    read_targets,
    run_evaluation,
    suite_of,
)
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.models.clip import CLIP
from clipa_eqx.progress import waiting
from clipa_eqx.sharding import rows_of_process
from clipa_eqx.tokenizer.wordpiece import Tokenizer

_log = logging.getLogger(__name__)


class PlannedEvaluation(NamedTuple):
    """An evaluation of a run that is ready to be repeated.

    Attributes:
        suite: its field of the config.
        number: its position there.
        name: its name in the log, see ``names_of``.
    """

    suite: str
    number: int
    name: str
    evaluation: Evaluation


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
    config: ExperimentConfig, mixture: Mixture, evaluations: Sequence[PlannedEvaluation], tokenizer: Tokenizer
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
    available = available_processors()
    if (workers := config.data.stream.workers) > available:
        _log.warning(
            "data.stream.workers is %d, and this machine has %s for them: they wait for each other, and each takes "
            "memory. Set --data.stream.workers %d",
            workers,
            counted(available, "processor"),
            available,
        )
    for planned in evaluations:
        log_evaluation(planned.evaluation, tokenizer)


def available_processors() -> int:
    """Processors of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def train_transform(config: ExperimentConfig, tokenizer: Tokenizer) -> TrainTransform:
    """The transform of a record into a batch row."""
    return TrainTransform(
        image=config.data.image,
        tokenizer=tokenizer,
        length=config.model.text.length,
        reduction=config.data.text_reduction,
    )


def train_batches(
    config: ExperimentConfig, mixture: Mixture, tokenizer: Tokenizer, *, start_step: int, mesh: Mesh | None = None
) -> BatchIterator:
    """Batches from ``start_step`` on; of a mesh, the rows that the devices of this process hold."""
    return train_stream(
        mixture,
        train_transform(config, tokenizer),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        rows=None if mesh is None else rows_of_process(config.batch_size, mesh),
        on_bad_record=config.data.on_bad_record,
        config=config.data.stream,
    )


def prepare_evaluations(config: ExperimentConfig, tokenizer: Tokenizer) -> tuple[PlannedEvaluation, ...]:
    """Open and check every evaluation set before training starts.

    Raises:
        ConfigError: a template or a setting is wrong.
        DataError: a folder is missing, damaged or empty, or lacks the class names, labels or captions that are scored.
    """
    planned: list[PlannedEvaluation] = []
    for one, name in zip(config.evaluations, names_of(config.evaluations), strict=True):
        suite = suite_of(one)
        number = sum(other.suite == suite for other in planned)
        try:
            evaluation = open_evaluation(one, tokenizer=tokenizer, length=config.model.text.length)
        except DataError as error:
            raise _with_flag(error, suite, number) from error
        planned.append(PlannedEvaluation(suite, number, name, evaluation))
    return tuple(planned)


def read_evaluations(
    config: ExperimentConfig, planned: Sequence[PlannedEvaluation], tokenizer: Tokenizer
) -> tuple[PlannedEvaluation, ...]:
    """Read the captions and labels of all evaluations once, before training starts. All processes call it together.

    Raises:
        ConfigError: the processes have different evaluations, or another process found a bad record.
        DataError: a record is damaged or lacks a caption or label, or a class has too few training images.
    """
    read: list[PlannedEvaluation] = []
    for one in planned:
        try:
            evaluation = read_targets(one.evaluation, tokenizer=tokenizer, length=config.model.text.length)
        except DataError as error:
            raise _with_flag(error, one.suite, one.number) from error
        read.append(one._replace(evaluation=evaluation))
    return tuple(read)


def _with_flag(error: DataError, suite: str, number: int) -> DataError:
    flag = suite.replace("_", "-")
    return DataError(f"{flag} evaluation {number}: {error}. Set --{flag}.{number}.data, or --{flag} none for no scores")


def evaluate_model(
    config: ExperimentConfig, planned: PlannedEvaluation, model: CLIP, tokenizer: Tokenizer, *, mesh: Mesh
) -> EvaluationResult:
    """Run an evaluation as the config prepares images and batches. All processes must call it together."""
    return run_evaluation(
        planned.evaluation,
        model,
        tokenizer=tokenizer,
        prepare_image=partial(eval_image, config=config.eval_image),
        stream=config.data.stream,
        mesh=mesh,
    )
