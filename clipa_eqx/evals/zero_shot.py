"""Zero-shot classification: from a record set, prompts and a model to a score."""

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
from jaxtyping import Array, Float, Int32, UInt8

from clipa_eqx.data.records import Record
from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.evals.counting import ZeroShotResult, score, sum_processes
from clipa_eqx.evals.encode import encode_images, encode_texts, local_rows
from clipa_eqx.evals.prompts import (
    ClassNameSet,
    PromptSet,
    class_prompts,
    named_class_names,
    named_templates,
    read_class_names,
)
from clipa_eqx.models.clip import CLIP
from clipa_eqx.tokenizer import Tokenizer

EncodeTexts = Callable[[Int32[np.ndarray, "batch length"]], Array | np.ndarray]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """One labeled record set and how it is scored.

    Attributes:
        data: folder of records whose ``label`` indexes the class names. Several labels of one picture stand in
            ``extra["labels"]`` as text, "3,17"; any of them counts as right.
        templates: a published prompt set, or the templates themselves, each with ``{}`` for the name.
        class_names: the manifest's, a published list, or "file" with ``class_names_file``, one name per line.
        canonicalize: lower case, no punctuation, as the reference scores; False keeps names and templates as written.
        first_name_only: of names such as "tabby, tabby cat" use the first; False averages over all.
        batch_size: pictures (and prompts) at once over all devices; it changes no count.
        text_reduction: how prompts longer than the text tower are cut.
        max_labels: labels of the picture with the most.
        every_steps: score in the training loop each so many steps; None scores at its end only.
    """

    data: str
    templates: PromptSet | tuple[str, ...] = "clip_paper"
    class_names: ClassNameSet | Literal["manifest", "file"] = "manifest"
    class_names_file: str | None = None
    canonicalize: bool = True
    first_name_only: bool = True
    batch_size: int = 256
    text_reduction: Literal["truncate", "syntax"] = "truncate"
    max_labels: int = 1
    every_steps: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.max_labels < 1:
            raise ConfigError(f"zero-shot: batch_size and max_labels must be at least 1, got {self}")
        if (self.class_names == "file") != (self.class_names_file is not None):
            raise ConfigError(
                f"zero-shot: class_names={self.class_names!r} with class_names_file={self.class_names_file!r}; "
                "give class_names_file together with class_names='file', and only then"
            )
        if not isinstance(self.templates, str):
            class_prompts(["name"], self.templates)  # raises on a template without {}


@dataclass(frozen=True, kw_only=True, eq=False)
class ZeroShotTask:
    """All of a scoring that does not depend on the model: made once, run at each evaluation."""

    config: ZeroShotConfig
    class_names: tuple[str, ...]
    tokens: tuple[Int32[np.ndarray, "_ length"], ...]
    about: Mapping[str, Any]


def prepare_zero_shot(
    config: ZeroShotConfig, *, manifest_class_names: Sequence[str] | None, tokenizer: Tokenizer, length: int
) -> ZeroShotTask:
    """Class names, prompts and their tokens (``length`` per prompt, that of the text tower).

    Raises ConfigError for bad templates, DataError where the record set has no class names or one is empty.
    """
    names = _class_names(config, manifest_class_names)
    templates = named_templates(config.templates) if isinstance(config.templates, str) else config.templates
    prompts = class_prompts(names, templates, canonical=config.canonicalize, first_name_only=config.first_name_only)
    encoded = [tokenizer(texts, length=length, reduction=config.text_reduction) for texts in prompts]
    truncated, total = sum(tokens.truncated for tokens in encoded), sum(map(len, prompts))
    _log.info("zero-shot on %s: %d classes, %d prompts, %d of them cut", config.data, len(names), total, truncated)
    if truncated > total / 10:
        _log.warning(
            "%.0f %% of the prompts are longer than the text tower's %d tokens and lose words; compare with shorter "
            "templates, such as class_name_only",
            100 * truncated / total,
            length,
        )
    about = {
        "data": config.data,
        "template_count": len(templates),
        "prompt_count": total,
        "truncated_prompts": truncated,
        "config_sha256": _sha256(json.dumps(dataclasses.asdict(config), sort_keys=True)),
        "prompts_sha256": _sha256("\n".join(text for texts in prompts for text in texts)),
    }
    return ZeroShotTask(config=config, class_names=names, tokens=tuple(t.ids for t in encoded), about=about)


def evaluate_zero_shot(
    model: CLIP, task: ZeroShotTask, batches: Iterable[Mapping[str, np.ndarray]], *, mesh: Mesh | None = None
) -> ZeroShotResult:
    """Score a model on the batches of ``eval_stream(source, ZeroShotTransform(...), batch_size=...)``.

    The model's arrays live on ``mesh`` (any sharding) or, without a mesh, on one device.
    """
    embeddings = class_embeddings(
        partial(encode_texts, model, mesh=mesh), task.tokens, batch_size=task.config.batch_size
    )
    result = score(partial(encode_images, model, mesh=mesh), embeddings, batches)
    return dataclasses.replace(result, about=task.about)


@dataclass(frozen=True, kw_only=True)
class ZeroShotTransform:
    """Record to the row that ``score`` takes; ``picture`` decodes and sizes the image bytes. Picklable if it is."""

    picture: Callable[[bytes], UInt8[np.ndarray, "height width 3"]]
    max_labels: int = 1

    def __call__(self, record: Record) -> dict[str, np.ndarray]:
        """Raises DataError for a record without a label or with more than ``max_labels``."""
        labels = _labels(record)
        if len(labels) > self.max_labels:
            raise DataError(
                f"record {record.key!r} has {len(labels)} labels, zero-shot scoring expects at most {self.max_labels}; "
                "set max_labels"
            )
        row = np.full((self.max_labels,), -1, np.int32)
        row[: len(labels)] = labels
        return {"image": self.picture(record.image), "label": row}


def class_embeddings(
    encode_text: EncodeTexts, tokens: Sequence[Int32[np.ndarray, "_ length"]], *, batch_size: int
) -> Float[np.ndarray, "classes embed"]:
    """Per class the mean of its prompts' unit embeddings, divided by (1e-8 + its norm).

    ``tokens[c]`` holds the prompts of class c. Classes with the same prompts get bit-equal embeddings. Processes share
    the work. Source: ``evaluators/proj/image_text/discriminative_classifier.py`` of the reference.
    """
    first_class: dict[bytes, int] = {}
    row_of_class = [first_class.setdefault(prompts.tobytes(), len(first_class)) for prompts in tokens]
    kept = [tokens[row_of_class.index(row)] for row in range(len(first_class))]
    texts = np.concatenate(kept)
    owner = np.repeat(np.arange(len(kept)), [len(prompts) for prompts in kept])
    local = -(-batch_size // jax.process_count())
    sums: np.ndarray | None = None
    for start in range(0, len(texts), local * jax.process_count()):
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


def _labels(record: Record) -> tuple[int, ...]:
    text = record.extra.get("labels")
    if text is not None:
        try:
            return tuple(int(part) for part in str(text).split(","))
        except ValueError as error:
            raise DataError(f"record {record.key!r}: extra['labels'] must be like '3,17', got {text!r}") from error
    if record.label is None:
        raise DataError(f"record {record.key!r} has no label; zero-shot scoring needs a labeled set")
    return (record.label,)


def _class_names(config: ZeroShotConfig, manifest_class_names: Sequence[str] | None) -> tuple[str, ...]:
    if config.class_names_file is not None:
        return read_class_names(config.class_names_file)
    if config.class_names != "manifest" and config.class_names != "file":
        return named_class_names(config.class_names)
    if not manifest_class_names:
        raise DataError(
            f"data folder {config.data} has no class names in its manifest; write them when converting, "
            "or set class_names to 'imagenet' or to 'file'"
        )
    return tuple(manifest_class_names)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
