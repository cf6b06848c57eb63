"""The inputs of a run: training batches and prepared evaluations."""

import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from clipa_eqx.data.array_record_reader import RecordSource, open_records
from clipa_eqx.data.images.evaluation import eval_image
from clipa_eqx.data.mixture import Mixture
from clipa_eqx.data.prefetch import BatchIterator
from clipa_eqx.data.stream import eval_stream, train_stream
from clipa_eqx.data.transforms import TrainTransform
from clipa_eqx.evals.zero_shot import (
    ZeroShotConfig,
    ZeroShotTask,
    ZeroShotTransform,
    prepare_zero_shot,
    warn_of_padding,
)
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.tokenizer.wordpiece import Tokenizer

_log = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """A zero-shot evaluation that is ready to run."""

    name: str
    config: ZeroShotConfig
    source: RecordSource
    task: ZeroShotTask


def open_sources(config: ExperimentConfig) -> Mixture:
    """The record folders of a run. A warning names those that are smaller than their share of a batch.

    Raises:
        DataError: a folder is missing, damaged or empty; the message names it.
    """
    mixture = Mixture(
        sources=tuple(open_records(source.folder) for source in config.data.sources),
        weights=tuple(source.weight for source in config.data.sources),
    )
    if repeats := mixture.repeats(config.batch_size):
        _log.warning(
            "batch_size %d is larger than the data: %s. A batch then has the same pair several times, and the loss "
            "counts its copies as wrong pairs. Use more data, or a batch_size of at most %d",
            config.batch_size,
            "; ".join(repeats),
            mixture.largest_batch,
        )
    return mixture


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
    """Open and check every evaluation set before training starts; names are the folders' last parts, made unique."""
    evaluations: list[Evaluation] = []
    for one in config.zero_shot:
        source = open_records(one.data)
        warn_of_padding(one, records=len(source))
        task = prepare_zero_shot(
            one,
            manifest_class_names=source.manifest.class_names,
            tokenizer=tokenizer,
            length=config.model.text.length,
        )
        stem = Path(one.data).name
        taken = {evaluation.name for evaluation in evaluations}
        name = stem if stem not in taken else f"{stem}{len(evaluations)}"
        evaluations.append(Evaluation(name, one, source, task))
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
