"""Zero-shot scoring of a record folder in one call: prompts, batches, embeddings and counts."""

from functools import partial

from jax.sharding import Mesh

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.images.evaluation import EvalImageConfig, eval_image
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.stream import eval_stream
from clipa_eqx.evals.counting import ZeroShotResult
from clipa_eqx.evals.embeddings import with_progress
from clipa_eqx.evals.zero_shot import (
    ZeroShotConfig,
    ZeroShotTransform,
    evaluate_zero_shot,
    prepare_zero_shot,
    warn_of_padding,
)
from clipa_eqx.models.clip import CLIP
from clipa_eqx.tokenizer.wordpiece import Tokenizer


def score_records(
    model: CLIP,
    config: ZeroShotConfig,
    source: RecordSource,
    *,
    tokenizer: Tokenizer,
    preprocess: EvalImageConfig,
    workers: int = 0,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> ZeroShotResult:
    """Score a model on all records of a folder, in one process.

    Args:
        source: labeled records, opened with ``open_records``.
        preprocess: how images are decoded and resized.
        workers: extra processes that decode images.
        mesh: where the model's arrays are (any sharding); None means on one device.
        progress: show a progress bar on standard error.

    Raises:
        ConfigError: a template or a setting is wrong.
        DataError: a record is damaged or has no label, or there are no class names.
        NonFiniteError: an embedding is NaN or infinite.
    """
    task = prepare_zero_shot(
        config,
        manifest_class_names=source.manifest.class_names,
        manifest_templates=source.manifest.templates,
        tokenizer=tokenizer,
        length=model.config.text.length,
    )
    warn_of_padding(config, records=len(source))
    transform = ZeroShotTransform(prepare_image=partial(eval_image, config=preprocess), max_labels=config.max_labels)
    stream = StreamConfig(workers=workers)
    with eval_stream(source, transform, batch_size=config.batch_size, config=stream) as batches:
        return evaluate_zero_shot(
            model, task, with_progress(batches, what="scoring", total=len(source)) if progress else batches, mesh=mesh
        )
