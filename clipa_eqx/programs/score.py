"""Score a model on a suite: the scores, what was scored, and the settings and versions that led to them."""

import dataclasses
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.devices import in_words, open_devices
from clipa_eqx.evals.prompts import ClassNameSet, PromptReduction, PromptSet
from clipa_eqx.evals.record_folder import score_records
from clipa_eqx.evals.zero_shot import ZeroShotConfig, check_set
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
        suite: name of the suite.
        data: folder of labeled records.
        text_reduction: how prompts longer than the text tower are cut; None takes that of the model's training.
        workers: extra processes that decode images.
        image_mode: how images are decoded and resized; None takes the mode saved with the model.
        with_predictions: also report the five likeliest classes of each image.

    The other fields are those of ``ZeroShotConfig``.
    """

    model: Path
    suite: Literal["zero-shot"]
    data: str
    templates: PromptSet | Literal["manifest"] | tuple[str, ...] = "clip_paper"
    class_names: ClassNameSet | Literal["manifest", "file"] = "manifest"
    class_names_file: str | None = None
    canonicalize: bool = True
    commas_in_names: bool = False
    text_reduction: PromptReduction | None = None
    max_labels: int = 1
    batch_size: int = 256
    workers: int = 0
    image_mode: Literal["exact", "fast"] | None = None
    with_predictions: bool = False


def score(request: Request) -> dict[str, Any]:
    """Score on all devices of this process; the result is the JSON object that ``write_result`` writes.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: a setting is wrong.
        DataError: the records are missing, damaged or have no labels, or the class names do not fit them.
    """
    # Before the model is loaded, so that a wrong setting is reported at once.
    config = ZeroShotConfig(
        data=request.data,
        templates=request.templates,
        class_names=request.class_names,
        class_names_file=request.class_names_file,
        canonicalize=request.canonicalize,
        commas_in_names=request.commas_in_names,
        batch_size=request.batch_size,
        max_labels=request.max_labels,
    )
    source = open_records(request.data)
    check_set(config, source)
    devices = open_devices()
    _log.info("scoring on %s", in_words(devices))
    mesh = make_mesh(MeshConfig(), devices=devices)
    with waiting("reading the model"):
        scored = load_scored(request.model, mesh)
    config = dataclasses.replace(config, text_reduction=request.text_reduction or scored.text_reduction)
    preprocess = _with_mode(scored.preprocess, request.image_mode)
    length = scored.model.config.text.length
    _log.info("prompts longer than %d tokens: %s", length, config.text_reduction)
    _log.info("%s, %s", request.model, _preparation(preprocess))
    since = time.perf_counter()
    result = score_records(
        scored.model,
        config,
        source,
        tokenizer=scored.tokenizer,
        preprocess=preprocess,
        workers=request.workers,
        mesh=mesh,
        progress=True,
    )
    return {
        "suite": request.suite,
        **result.to_json(with_predictions=request.with_predictions),
        "model": dict(scored.identity),
        "preprocess": to_json(preprocess),
        "settings": to_json(config),
        "versions": installed_versions(),
        "devices": {"count": mesh.size, "kind": str(mesh.devices.flat[0].device_kind)},
        "seconds": time.perf_counter() - since,
    }


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
