"""Passports of scores: data, classes, prompts, image preparation, tokenizer, weights and numerics.

Two results with the same passport have the same score, up to rounding between devices.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.images.host_pixels import IMAGENET_MEAN, IMAGENET_STD
from clipa_eqx.evals.code_version import code_version
from clipa_eqx.evals.contrastive import ContrastiveConfig
from clipa_eqx.evals.evaluation import Evaluation, suite_of
from clipa_eqx.evals.prompts import class_prompts
from clipa_eqx.evals.published_sets import describe_set
from clipa_eqx.evals.retrieval import RetrievalConfig
from clipa_eqx.evals.zero_shot import ZeroShotTask, templates_of
from clipa_eqx.json_config import to_json
from clipa_eqx.models.clip import CLIP
from clipa_eqx.tokenizer.wordpiece import Tokenizer


def passport_of(
    evaluation: Evaluation,
    model: CLIP,
    *,
    weights: Mapping[str, Any],
    tokenizer: Tokenizer,
    preprocess: EvalImageConfig,
    mesh: Mesh | None,
    is_expected: bool = False,
) -> dict[str, Any]:
    """The passport of a score.

    Args:
        weights: what identifies them, such as a hash.
        preprocess: how images are prepared.
        mesh: the devices; it changes a score by rounding only.
        is_expected: the fingerprint of the records is the one that the user gave.
    """
    config = evaluation.config
    found: dict[str, Any] = {
        "suite": suite_of(config),
        "data": data_identity(evaluation.source),
        "image": {
            **to_json(preprocess),
            "interpolation": "bilinear",
            "antialias": True,
            "rounding": "truncate" if preprocess.mode == "exact" else "nearest",
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        },
        "tokenizer": {"vocab_sha256": tokenizer.vocab_sha256, "length": model.config.text.length},
        "model": {
            "weights": dict(weights),
            "config": to_json(model.config),
            "dtype": str(model.log_temperature.dtype),
            "matmul_precision": "highest"  # set by the towers for float32
            if model.log_temperature.dtype == np.float32
            else str(jax.config.values["jax_default_matmul_precision"] or "default"),
        },
        "code": code_version(),
        "set": set_of(evaluation, is_expected=is_expected),
        "devices": None if mesh is None else {name: int(size) for name, size in mesh.shape.items()},
    }
    if evaluation.train is not None:
        found["train"] = data_identity(evaluation.train)
    if evaluation.task is not None:
        found["classes"] = {"count": len(evaluation.task.class_names), "sha256": _hash(evaluation.task.class_names)}
        templates = templates_of(evaluation.task.config, evaluation.source.manifest.templates)
        found["templates"] = {"count": len(templates), "sha256": _hash(templates)}
        found["prompts"] = {"sha256": evaluation.task.about["prompts_sha256"]}
        found["class_names_cut"] = class_names_cut(evaluation.task, tokenizer)
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("data", "train")}
    return {**found, "settings": json.loads(json.dumps(settings))}


def set_of(evaluation: Evaluation, *, is_expected: bool = False) -> dict[str, Any]:
    """``describe_set`` of the records that are scored."""
    manifest = evaluation.source.manifest
    if isinstance(evaluation.config, RetrievalConfig | ContrastiveConfig):
        captions = manifest.info.get("captions_written")
        return describe_set(manifest, captions=captions if isinstance(captions, int) else None, is_expected=is_expected)
    names = manifest.class_names or () if evaluation.task is None else evaluation.task.class_names
    return describe_set(manifest, classes=len(names), is_expected=is_expected)


def class_names_cut(task: ZeroShotTask, tokenizer: Tokenizer) -> dict[str, int]:
    """The number of prompts that lose a part of the class name because they are longer than the text tower.

    Returns:
        ``prompts`` that lose it; ``classes`` of which at least one prompt does, ``classes_entirely`` of which all do;
        ``templates`` that lose it for at least one class, ``templates_entirely`` that do for all.
    """
    config = task.config
    names = class_prompts(
        task.class_names,
        ["{}"],
        canonical=config.canonicalize,
        first_name_only=config.first_name_only,
        commas_in_names=config.commas_in_names,
    )
    templates = len(task.tokens[0]) // len(names[0])
    lost = [_lost(rows, tokenizer, synonyms) for rows, synonyms in zip(task.tokens, names, strict=True)]
    of_templates = np.concatenate([one.reshape(-1, templates) for one in lost])
    return {
        "prompts": sum(int(np.count_nonzero(one)) for one in lost),
        "classes": sum(bool(one.any()) for one in lost),
        "classes_entirely": sum(bool(one.all()) for one in lost),
        "templates": int(np.count_nonzero(of_templates.any(axis=0))),
        "templates_entirely": int(np.count_nonzero(of_templates.all(axis=0))),
    }


def _lost(rows: Int32[np.ndarray, "prompts length"], tokenizer: Tokenizer, synonyms: Sequence[str]) -> np.ndarray:
    """Mark the prompts without all pieces of their name in order; a class has all its templates for each name."""
    pieces = [[piece for word in tokenizer.words(name) for piece in word] for name in synonyms]
    templates = len(rows) // len(synonyms)
    return np.array([not _holds(row.tolist(), pieces[i // templates]) for i, row in enumerate(rows)])


def _hash(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def data_identity(source: RecordSource) -> dict[str, Any]:
    """The identity of a record folder: its fingerprint, equal for the same records in any order, and its shards."""
    shards = source.manifest.table.contents()
    return {
        "folder": str(source.folder),
        "count": len(source),
        "content_fingerprint": source.manifest.info.get("content_fingerprint"),
        "shards_sha256": hashlib.sha256(json.dumps(shards).encode()).hexdigest(),
    }


def _holds(row: Sequence[int], pieces: Sequence[int]) -> bool:
    rest = iter(row)
    return all(piece in rest for piece in pieces)
