"""Score a model on a suite: the scores, what was scored, and the settings and versions that led to them."""

import dataclasses
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from clipa_eqx.agreement import refused_together
from clipa_eqx.data.images.evaluation import EvalImageConfig, eval_image
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.devices import in_words, open_devices
from clipa_eqx.evals.contrastive import ContrastiveConfig
from clipa_eqx.evals.counting import ZeroShotResult, gather_predictions
from clipa_eqx.evals.evaluation import (
    EvaluationConfig,
    check_evaluation,
    log_evaluation,
    open_evaluation,
    run_evaluation,
    suite_of,
)
from clipa_eqx.evals.passport import passport_of, set_of
from clipa_eqx.evals.published_sets import check_fingerprint
from clipa_eqx.evals.retrieval import RetrievalConfig
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.json_config import to_json
from clipa_eqx.programs.scored import load_scored
from clipa_eqx.progress import waiting
from clipa_eqx.replacing import write_text
from clipa_eqx.sharding import MeshConfig, make_mesh

PACKAGES = ("clipa_eqx", "jax", "equinox", "numpy", "grain", "pillow", "simplejpeg", "safetensors")
"""Packages whose versions a result records."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A scoring to do: the model, the data and the settings.

    Attributes:
        model: a model folder, or a run folder.
        evaluation: the suite with its settings.
        keeps_reduction: whether texts longer than the text tower are cut as ``evaluation`` says; otherwise as in the
            model's training.
        workers: extra processes that decode images.
        image_mode: how images are decoded and resized; None takes the mode saved with the model.
        with_predictions: also report the five likeliest classes of each image, of a zero-shot evaluation.
        expect_fingerprint: the fingerprint that the records must have; None takes any.
    """

    model: Path
    evaluation: EvaluationConfig
    keeps_reduction: bool = False
    workers: int = 0
    image_mode: Literal["exact", "fast"] | None = None
    with_predictions: bool = False
    expect_fingerprint: str | None = None


def score(request: Request) -> dict[str, Any]:
    """Score on all devices; the result is the JSON object that ``write_result`` writes, the same on each process.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: a setting is wrong.
        DataError: the records are missing, damaged, not the expected ones, or lack the labels, class names or captions
            that are scored.
    """
    # Before the model is loaded, so that a wrong setting is reported at once.
    config = request.evaluation
    devices = open_devices()
    is_expected = request.expect_fingerprint is not None
    with refused_together("score"):
        source, _ = check_evaluation(config)
        if request.expect_fingerprint is not None:
            check_fingerprint(source.manifest, request.expect_fingerprint, data=config.data)
    _log.info("scoring on %s", in_words(devices))
    mesh = make_mesh(MeshConfig(), devices=devices)
    with waiting("reading the model"):
        scored = load_scored(request.model, mesh)
    length = scored.model.config.text.length
    if isinstance(config, ZeroShotConfig | RetrievalConfig | ContrastiveConfig):
        reduction = config.text_reduction if request.keeps_reduction else scored.text_reduction
        config = dataclasses.replace(config, text_reduction=reduction)
        _log.info("texts longer than %d tokens: %s", length, reduction)
    preprocess = _with_mode(scored.preprocess, request.image_mode)
    _log.info("%s, %s", request.model, _preparation(preprocess))
    since = time.perf_counter()
    with refused_together("score"):
        evaluation = open_evaluation(config, tokenizer=scored.tokenizer, length=length)
    log_evaluation(evaluation, scored.tokenizer)
    _log.info("%s", set_lines(set_of(evaluation, is_expected=is_expected))[0])
    result = run_evaluation(
        evaluation,
        scored.model,
        tokenizer=scored.tokenizer,
        prepare_image=partial(eval_image, config=preprocess),
        stream=StreamConfig(workers=request.workers),
        mesh=mesh,
        progress=True,
    )
    if isinstance(result, ZeroShotResult) and request.with_predictions:
        content = gather_predictions(result).to_json(with_predictions=True)
    else:
        content = result.to_json()
    return {
        "suite": suite_of(config).replace("_", "-"),
        **content,
        "model": dict(scored.identity),
        "passport": passport_of(
            evaluation,
            scored.model,
            weights={name: value for name, value in scored.identity.items() if name != "path"},
            tokenizer=scored.tokenizer,
            preprocess=preprocess,
            mesh=mesh,
            is_expected=is_expected,
        ),
        "preprocess": to_json(preprocess),
        "settings": to_json(config),
        "versions": installed_versions(),
        "devices": {"count": mesh.size, "kind": str(mesh.devices.flat[0].device_kind)},
        "seconds": time.perf_counter() - since,
    }


def set_lines(found: Mapping[str, Any]) -> list[str]:
    """The ``set`` of a passport for the terminal: one line, and one for each flag."""
    name = found["name"]
    if name is None:
        return [f"set: {found['flags'][0]}", *(f"  {flag}" for flag in found["flags"][1:])]
    return [f"set: {name}, by its numbers ({found['numbers']})", *(f"  {flag}" for flag in found["flags"])]


def name_lines(passport: Mapping[str, Any]) -> list[str]:
    """Lines about class names that prompts lose, of a zero-shot score, for the terminal; nothing for other suites."""
    if "class_names_cut" not in passport:
        return []
    cut, classes, templates = (passport[name] for name in ("class_names_cut", "classes", "templates"))
    length = f"{passport['tokenizer']['length']} tokens"
    if not cut["prompts"]:
        return [f"class names: complete in every prompt of {length}"]
    complete = classes["count"] - cut["classes"]
    return [
        f"class names: complete in every prompt of {length} for {complete:,} of {classes['count']:,} classes, in none "
        f"for {cut['classes_entirely']:,}; {templates['count'] - cut['templates']:,} of {templates['count']:,} "
        "templates keep every name complete"
    ]


def _preparation(preprocess: EvalImageConfig) -> str:
    """Image preparation for the log: height x width, resizing and mode."""
    height, width = preprocess.size
    return f"images of {height} x {width} pixels, {preprocess.resize}, {preprocess.mode}"


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result as indented JSON; the file appears once it is complete."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def installed_versions() -> dict[str, str]:
    """Versions of Python and of ``PACKAGES``."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # A clone on the path that was never installed.
            found[package] = "not installed"
    return found


def _with_mode(preprocess: EvalImageConfig, mode: Literal["exact", "fast"] | None) -> EvalImageConfig:
    return preprocess if mode is None else dataclasses.replace(preprocess, mode=mode)
