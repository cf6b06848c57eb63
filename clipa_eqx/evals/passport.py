"""Passports of scores: data, classes, prompts, image preparation, tokenizer, weights and numerics.

Two results with the same passport have the same score, up to rounding between devices.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.images.host_pixels import IMAGENET_MEAN, IMAGENET_STD
from clipa_eqx.evals.evaluation import Evaluation, suite_of
from clipa_eqx.evals.prompts import class_prompts
from clipa_eqx.evals.zero_shot import ZeroShotTask
from clipa_eqx.json_config import to_json
from clipa_eqx.models.clip import CLIP
from clipa_eqx.tokenizer.wordpiece import Tokenizer

_SETS = {
    # images and classes of the published sets; ImageNet-ReaL without the 3,163 images that have no label
    "ImageNet validation": (50_000, 1000),
    "ImageNetV2": (10_000, 1000),
    "ImageNet-A": (7_500, 200),
    "ImageNet-R": (30_000, 200),
    "ImageNet-Sketch": (50_889, 1000),
    "ImageNet-ReaL": (46_837, 1000),
    "ObjectNet, its classes in ImageNet": (18_574, 113),
}


def passport_of(
    evaluation: Evaluation,
    model: CLIP,
    *,
    weights: Mapping[str, Any],
    tokenizer: Tokenizer,
    preprocess: EvalImageConfig,
    mesh: Mesh | None,
) -> dict[str, Any]:
    """The passport of a score.

    Args:
        weights: what identifies them, such as a hash.
        preprocess: how images are prepared.
        mesh: the devices; it changes a score by rounding only.
    """
    config = evaluation.config
    found: dict[str, Any] = {
        "suite": suite_of(config),
        "data": _data(evaluation.source),
        "image": {
            **to_json(preprocess),
            "interpolation": "bilinear",
            "antialias": True,
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        },
        "tokenizer": {"vocab_sha256": tokenizer.vocab_sha256, "length": model.config.text.length},
        "model": {
            "weights": dict(weights),
            "config": to_json(model.config),
            "dtype": str(model.log_temperature.dtype),
        },
        "devices": None if mesh is None else {name: int(size) for name, size in mesh.shape.items()},
    }
    if evaluation.train is not None:
        found["train"] = _data(evaluation.train)
    if evaluation.task is not None:
        found["classes"] = {"count": len(evaluation.task.class_names), "sha256": _hash(evaluation.task.class_names)}
        found["prompts"] = {
            "template_count": evaluation.task.about["template_count"],
            "sha256": evaluation.task.about["prompts_sha256"],
        }
        found["set"] = describe_set(len(evaluation.source), classes=len(evaluation.task.class_names))
        found["class_names_cut"] = class_names_cut(evaluation.task, tokenizer)
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("data", "train")}
    return {**found, "settings": json.loads(json.dumps(settings))}


def describe_set(images: int, *, classes: int) -> str:
    """The published set of that many images and classes, or a statement that there is none."""
    for name, numbers in _SETS.items():
        if numbers == (images, classes):
            return f"{name}, by its numbers of images and classes"
    return f"no published set: {images:,} images, {classes:,} classes"


def class_names_cut(task: ZeroShotTask, tokenizer: Tokenizer) -> dict[str, int]:
    """The number of prompts that lose a part of the class name because they are longer than the text tower.

    Returns:
        ``prompts`` that lose it; ``classes`` of which at least one prompt does; ``classes_entirely`` of which all do.
    """
    config = task.config
    names = class_prompts(
        task.class_names,
        ["{}"],
        canonical=config.canonicalize,
        first_name_only=config.first_name_only,
        commas_in_names=config.commas_in_names,
    )
    lost = [_lost(rows, tokenizer, synonyms) for rows, synonyms in zip(task.tokens, names, strict=True)]
    return {
        "prompts": sum(int(np.count_nonzero(one)) for one in lost),
        "classes": sum(bool(one.any()) for one in lost),
        "classes_entirely": sum(bool(one.all()) for one in lost),
    }


def _lost(rows: Int32[np.ndarray, "prompts length"], tokenizer: Tokenizer, synonyms: Sequence[str]) -> np.ndarray:
    """Mark the prompts without all pieces of their name in order; a class has all its templates for each name."""
    pieces = [[piece for word in tokenizer.words(name) for piece in word] for name in synonyms]
    templates = len(rows) // len(synonyms)
    return np.array([not _holds(row.tolist(), pieces[i // templates]) for i, row in enumerate(rows)])


def _hash(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _data(source: RecordSource) -> dict[str, Any]:
    """The identity of a record folder: its fingerprint, equal for the same records in any order, and its shards."""
    shards = [[shard.count, shard.sha256] for shard in source.manifest.shards]
    return {
        "folder": str(source.folder),
        "count": len(source),
        "content_fingerprint": source.manifest.info.get("content_fingerprint"),
        "shards_sha256": hashlib.sha256(json.dumps(shards).encode()).hexdigest(),
    }


def _holds(row: Sequence[int], pieces: Sequence[int]) -> bool:
    rest = iter(row)
    return all(piece in rest for piece in pieces)
