"""Zero-shot classification: from a record folder, prompts and a model to a score."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int32, UInt8

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.records import Record
from clipa_eqx.errors import ConfigError, DataError, counted
from clipa_eqx.evals.class_names import choose_class_names
from clipa_eqx.evals.counting import ZeroShotResult, score
from clipa_eqx.evals.embeddings import EncodeTexts
from clipa_eqx.evals.encode import encode_images, encode_texts, local_rows
from clipa_eqx.evals.gathering import sum_processes
from clipa_eqx.evals.labels import check_labels, check_number, labels_of
from clipa_eqx.evals.prompts import ClassNameSet, PromptSet, class_prompts, named_templates
from clipa_eqx.models.clip import CLIP
from clipa_eqx.progress import progress_bar
from clipa_eqx.tokenizer.unknown import NAME_ADVICE, warn_of_unknown
from clipa_eqx.tokenizer.wordpiece import Tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """A folder of labeled records, and how a model is scored on it.

    Attributes:
        data: record folder whose ``label`` indexes the class names. An image with several labels has them as text
            in ``extra["labels"]``, such as "3,17" or "[3, 17]"; each of them counts as right.
        templates: name of a published prompt set, or the templates themselves, each with ``{}`` (or ``{c}``) for the
            class name. The sets are "clip_paper" (81 templates, as the reference scores), "open_clip" (80),
            "clip_best" (8) and "class_name_only" (1). "manifest" takes those of the record folder, which sets of
            CLIP_benchmark have.
        class_names: "manifest" takes those of the record folder, "file" those of ``class_names_file``; "imagenet"
            (1000), "imagenet_a" and "imagenet_r" (200 each) are published lists. If the classes of the folder are
            WordNet ids of ImageNet (such as "n01440764"), "manifest" and the lists give the names of these ids.
        class_names_file: UTF-8 file with one name per line, in label order; None unless ``class_names`` is "file".
        canonicalize: lower case without punctuation, as the reference scores; False keeps names and templates as
            written.
        first_name_only: use only the first of names such as "tabby, tabby cat"; False averages over all of them.
        commas_in_names: commas are part of a name and do not separate names.
        batch_size: images (and prompts) at once over all devices; it changes no count.
        text_reduction: how prompts longer than the text tower are cut: "truncate" keeps the first pieces, "syntax" the
            words of the most important classes.
        max_labels: most labels that one image has.
        every_steps: period of scoring in the training loop, in steps; None scores at its end only.

    Raises:
        ConfigError: a field is out of range, a template has no ``{}``, ``class_names_file`` does not fit
            ``class_names``, or ``commas_in_names`` does not fit ``first_name_only``.
    """

    data: str
    templates: PromptSet | Literal["manifest"] | tuple[str, ...] = "clip_paper"
    class_names: ClassNameSet | Literal["manifest", "file"] = "manifest"
    class_names_file: str | None = None
    canonicalize: bool = True
    first_name_only: bool = True
    commas_in_names: bool = False
    batch_size: int = 256
    text_reduction: Literal["truncate", "syntax"] = "truncate"
    max_labels: int = 1
    every_steps: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.max_labels < 1:
            raise ConfigError(
                f"zero-shot: batch_size and max_labels must be at least 1, got {self.batch_size} and {self.max_labels}"
            )
        if (self.class_names == "file") != (self.class_names_file is not None):
            raise ConfigError(
                f"zero-shot: class_names={self.class_names!r} with class_names_file={self.class_names_file!r}; "
                "give class_names_file together with class_names='file', and only then"
            )
        if self.commas_in_names and not self.first_name_only:
            raise ConfigError(
                "zero-shot: with commas_in_names a name has no synonyms to average over; leave first_name_only at True"
            )
        if not isinstance(self.templates, str):
            class_prompts(["name"], self.templates)  # raises on a template without {}


@dataclass(frozen=True, kw_only=True, eq=False)
class ZeroShotTask:
    """Everything that scoring needs except the model and the images; made once, used by each evaluation.

    Attributes:
        config: how the model is scored.
        class_names: names of the classes, in label order.
        tokens: ids of the prompts of each class, one array int32[prompts length] per class.
        about: what was scored (JSON), with hashes of the config and of the prompts.
    """

    config: ZeroShotConfig
    class_names: tuple[str, ...]
    tokens: tuple[Int32[np.ndarray, "_ length"], ...]
    about: Mapping[str, Any]


def class_names_of(config: ZeroShotConfig, manifest_class_names: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the classes in label order, checked against those of the record folder. Quick: no model is needed.

    Raises:
        DataError: there are no class names, more or fewer than the folder has classes, or their file cannot be read.
    """
    return choose_class_names(config.class_names, manifest_class_names, file=config.class_names_file, data=config.data)


def templates_of(config: ZeroShotConfig, manifest_templates: Sequence[str] | None) -> tuple[str, ...]:
    """The prompt templates: a published set, those of the record folder, or those of the config.

    Raises:
        ConfigError: there is no such set.
        DataError: those of the record folder are wanted, and it has none.
    """
    if not isinstance(config.templates, str):
        return config.templates
    if config.templates != "manifest":
        return named_templates(config.templates)
    if not manifest_templates:
        raise DataError(
            f"data folder {config.data} has no templates in its manifest, which only sets of CLIP_benchmark have; name "
            "a prompt set or list the templates"
        )
    return tuple(manifest_templates)


def prepare_zero_shot(
    config: ZeroShotConfig,
    *,
    manifest_class_names: Sequence[str] | None,
    manifest_templates: Sequence[str] | None = None,
    tokenizer: Tokenizer,
    length: int,
) -> ZeroShotTask:
    """Make the prompts of all classes, tokenize them, and log how many are cut.

    Args:
        manifest_class_names: ``source.manifest.class_names`` of the record folder, in label order.
        manifest_templates: ``source.manifest.templates``, for ``templates="manifest"``.
        length: tokens per prompt, that of the text tower.

    Returns:
        A task whose ``tokens[c]`` is int32[prompts of class c, length].

    Raises:
        ConfigError: a template has no ``{}``, or there is none.
        DataError: there are no class names, more or fewer than the record folder has classes, one of them is empty,
            their file cannot be read, or the record folder has no templates.
    """
    task = make_task(
        config,
        manifest_class_names=manifest_class_names,
        manifest_templates=manifest_templates,
        tokenizer=tokenizer,
        length=length,
    )
    log_prompts(task, tokenizer)
    return task


def make_task(
    config: ZeroShotConfig,
    *,
    manifest_class_names: Sequence[str] | None,
    manifest_templates: Sequence[str] | None = None,
    tokenizer: Tokenizer,
    length: int,
) -> ZeroShotTask:
    """Make the task of ``prepare_zero_shot`` without a line in the log."""
    names = class_names_of(config, manifest_class_names)
    templates = templates_of(config, manifest_templates)
    prompts = class_prompts(
        names,
        templates,
        canonical=config.canonicalize,
        first_name_only=config.first_name_only,
        commas_in_names=config.commas_in_names,
    )
    encoded = [tokenizer(texts, length=length, reduction=config.text_reduction) for texts in prompts]
    truncated, total = sum(tokens.truncated for tokens in encoded), sum(map(len, prompts))
    about = {
        "data": config.data,
        "template_count": len(templates),
        "prompt_count": total,
        "truncated_prompts": truncated,
        "config_sha256": _sha256(json.dumps(dataclasses.asdict(config), sort_keys=True)),
        "prompts_sha256": _sha256("\n".join(text for texts in prompts for text in texts)),
    }
    return ZeroShotTask(config=config, class_names=names, tokens=tuple(t.ids for t in encoded), about=about)


def warn_of_padding(config: ZeroShotConfig, *, records: int) -> None:
    """Log a warning if the batch is larger than the data: its other rows are computed for nothing."""
    if config.batch_size > max(records, ZeroShotConfig.batch_size):  # the default costs little on small data
        _log.warning(
            "zero-shot on %s: batch_size %d is larger than the data of %s; the other rows are padding, which costs "
            "time and changes no score. Set batch_size to %d",
            config.data,
            config.batch_size,
            counted(records, "record"),
            max(1, records),
        )


def log_prompts(task: ZeroShotTask, tokenizer: Tokenizer) -> None:
    """Log the number of classes and prompts, and how many prompts lose words or have words that are not known."""
    truncated, total = task.about["truncated_prompts"], task.about["prompt_count"]
    _log.info(
        "zero-shot on %s: %d classes, %d prompts, %d of them cut",
        task.config.data,
        len(task.class_names),
        total,
        truncated,
    )
    if truncated > total / 10:
        _log.warning(
            "%.0f %% of the prompts are longer than the text tower's %d tokens and lose words; compare with shorter "
            "templates, such as class_name_only",
            100 * truncated / total,
            task.tokens[0].shape[1],
        )
    ids = np.concatenate(task.tokens)
    warn_of_unknown(
        f"prompts of {task.config.data}",
        unknown=int(np.count_nonzero(ids == tokenizer.unk_id)),
        pieces=int(np.count_nonzero(ids[:, 1:] != tokenizer.pad_id)),
        vocabulary=f"the model's vocabulary of {tokenizer.vocab_size:,} pieces",
        advice=NAME_ADVICE,
    )


def check_set(config: ZeroShotConfig, source: RecordSource) -> None:
    """Check what can be checked of an evaluation without a model: class names, templates, and a few labels.

    Raises:
        ConfigError: a template has no ``{}``, or there is none.
        DataError: there are no class names, more or fewer than the folder has classes, or no records, or a record that
            was read has no valid label.
    """
    names = class_names_of(config, source.manifest.class_names)
    class_prompts(names[:1], templates_of(config, source.manifest.templates))
    check_labels(source, classes=len(names), max_labels=config.max_labels)


def evaluate_zero_shot(
    model: CLIP, task: ZeroShotTask, batches: Iterable[Mapping[str, np.ndarray]], *, mesh: Mesh | None = None
) -> ZeroShotResult:
    """Score a model on labeled images.

    Args:
        model: its arrays are on ``mesh`` (any sharding) or, without a mesh, on one device.
        task: what ``prepare_zero_shot`` returned.
        batches: those of ``eval_stream(source, ZeroShotTransform(...), batch_size=...)``: ``image`` uint8[batch height
            width 3], ``label`` int32[batch labels] padded with -1, ``mask`` bool[batch], ``sample_id`` int64[batch].

    Returns:
        Counts over all processes. Each process must pass as many batches of the same size.

    Raises:
        DataError: a row has no label, a label has no class, or there are no rows.
        NonFiniteError: an embedding is NaN or infinite.
    """
    embeddings = class_embeddings(
        partial(encode_texts, model, mesh=mesh), task.tokens, batch_size=task.config.batch_size
    )
    result = score(partial(encode_images, model, mesh=mesh), embeddings, batches)
    return dataclasses.replace(result, about=task.about)


@dataclass(frozen=True, kw_only=True)
class ZeroShotTransform:
    """A record as a row of a batch: ``image`` uint8[height width 3] and ``label`` int32[max_labels], padded with -1.

    Attributes:
        prepare_image: from encoded bytes to pixels at the size of the model. The transform can be pickled if it can.
        max_labels: most labels that one image has.
    """

    prepare_image: Callable[[bytes], UInt8[np.ndarray, "height width 3"]]
    max_labels: int = 1

    def __call__(self, record: Record) -> dict[str, np.ndarray]:
        """Make the row of a record.

        Raises:
            DataError: the record has no label or more than ``max_labels``, or its image is damaged.
        """
        labels = labels_of(record)
        check_number(record, labels, max_labels=self.max_labels)
        row = np.full((self.max_labels,), -1, np.int32)
        row[: len(labels)] = labels
        return {"image": self.prepare_image(record.image), "label": row}


def class_embeddings(
    encode_text: EncodeTexts, tokens: Sequence[Int32[np.ndarray, "_ length"]], *, batch_size: int
) -> Float[np.ndarray, "classes embed"]:
    """The mean of each class's unit prompt embeddings, divided by (1e-8 + its norm), in float32.

    Classes with the same prompts get bit-equal embeddings. Processes share the work.

    Args:
        encode_text: int32[batch length] to unit embeddings [at least batch, embed].
        tokens: ``tokens[c]`` holds the prompts of class c.
        batch_size: prompts at once over all processes.

    Raises:
        DataError: there are no prompts.

    Source: ``evaluators/proj/image_text/discriminative_classifier.py`` of the reference.
    """
    first_class: dict[bytes, int] = {}
    row_of_class = [first_class.setdefault(prompts.tobytes(), len(first_class)) for prompts in tokens]
    kept = [tokens[row_of_class.index(row)] for row in range(len(first_class))]
    texts = np.concatenate(kept)
    owner = np.repeat(np.arange(len(kept)), [len(prompts) for prompts in kept])
    local = -(-batch_size // jax.process_count())
    sums: np.ndarray | None = None
    starts = range(0, len(texts), local * jax.process_count())
    for start in progress_bar(starts, what="encoding prompts", total=len(starts), unit="batch"):
        mine = slice(start + local * jax.process_index(), start + local * (jax.process_index() + 1))
        batch = np.zeros((local, texts.shape[1]), np.int32)
        batch[: len(texts[mine])] = texts[mine]
        found = local_rows(encode_text(batch), rows=len(texts[mine]))
        sums = np.zeros((len(kept), found.shape[1])) if sums is None else sums
        np.add.at(sums, owner[mine], found)
    if sums is None:
        raise DataError("zero-shot: no prompts to embed")
    means = sum_processes(sums) / np.bincount(owner)[:, None]
    unit = means / (1e-8 + np.linalg.norm(means, axis=1, keepdims=True))
    return unit.astype(np.float32)[row_of_class]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
