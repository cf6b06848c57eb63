"""Scoring a model again with one difference at a time taken from another result."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from clipa_eqx.data.images.evaluation import EvalImageConfig, eval_image
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.devices import open_devices
from clipa_eqx.errors import ConfigError
from clipa_eqx.evals.contrastive import ContrastiveConfig
from clipa_eqx.evals.evaluation import EvaluationConfig, open_evaluation, run_evaluation
from clipa_eqx.evals.few_shot import FewShotConfig
from clipa_eqx.evals.linear_probe import LinearProbeConfig
from clipa_eqx.evals.retrieval import RetrievalConfig
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.json_config import from_json
from clipa_eqx.programs.scored import Scored, load_scored
from clipa_eqx.sharding import MeshConfig, make_mesh

_CONFIGS: Mapping[str, type[EvaluationConfig]] = {
    "zero-shot": ZeroShotConfig,
    "retrieval": RetrievalConfig,
    "contrastive": ContrastiveConfig,
    "few-shot": FewShotConfig,
    "linear-probe": LinearProbeConfig,
}
_FREE = ("data", "train", "every_steps")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Setup:
    """Everything that decides a score, except the records."""

    model: Scored
    tokenizer: Scored
    preprocess: EvalImageConfig
    config: EvaluationConfig


def rescore(
    first: Mapping[str, Any], second: Mapping[str, Any], *, data: str, workers: int = 0
) -> Iterator[tuple[str, dict[str, float]]]:
    """Score the first model as it was, with each difference of the second result alone, and with all of them.

    Args:
        first, second: results of one suite.
        data: the records.
        workers: extra processes that decode images.

    Yields:
        A description of what was scored, and the scores.

    Raises:
        CheckpointError: a model is missing.
        ConfigError: a result does not hold the settings of this version.
        DataError: the records cannot be scored with these settings.
    """
    devices = open_devices()
    mesh = make_mesh(MeshConfig(), devices=devices)
    loaded = {
        path: load_scored(Path(path), mesh) for path in dict.fromkeys(one["model"]["path"] for one in (first, second))
    }
    a, b = (_setup(one, loaded[one["model"]["path"]], data=data) for one in (first, second))
    if a.model.model.config.image.image_size != b.model.model.config.image.image_size:
        raise ConfigError(
            "the two models have other image sizes, so that their parts cannot be exchanged one at a time"
        )

    def score(setup: _Setup) -> dict[str, float]:
        length = setup.model.model.config.text.length
        tokenizer = setup.tokenizer.tokenizer
        return run_evaluation(
            open_evaluation(setup.config, tokenizer=tokenizer, length=length),
            setup.model.model,
            tokenizer=tokenizer,
            prepare_image=partial(eval_image, config=setup.preprocess),
            stream=StreamConfig(workers=workers),
            mesh=mesh,
        ).scores()

    yield "as the first result", score(a)
    changed = [
        ("weights", dataclasses.replace(a, model=b.model)),
        ("tokenizer", dataclasses.replace(a, tokenizer=b.tokenizer)),
        *(
            (f"image/{name}", dataclasses.replace(a, preprocess=one))
            for name, one in _steps(a.preprocess, b.preprocess)
        ),
        *((f"settings/{name}", dataclasses.replace(a, config=one)) for name, one in _steps(a.config, b.config)),
    ]
    for name, setup in changed:
        if _is_other(name, first, second):
            yield f"with {name} of the second", score(setup)
    yield "with all of the second", score(b)


def _setup(result: Mapping[str, Any], scored: Scored, *, data: str) -> _Setup:
    settings = {**result["settings"], "data": data}
    return _Setup(
        model=scored,
        tokenizer=scored,
        preprocess=from_json(EvalImageConfig, result["preprocess"], where="the result's preprocess"),
        config=from_json(_CONFIGS[result["suite"]], settings, where="the result's settings"),
    )


def _steps(a: Any, b: Any) -> list[tuple[str, Any]]:
    """``a`` with each field that differs taken from ``b``. Fields that only make sense together change together."""
    names = [one.name for one in dataclasses.fields(a) if getattr(a, one.name) != getattr(b, one.name)]
    together = ("class_names", "class_names_file")
    steps: list[tuple[str, Any]] = []
    if any(name in together for name in names):
        steps.append(("class_names", dataclasses.replace(a, **{name: getattr(b, name) for name in together})))
    steps += [
        (name, dataclasses.replace(a, **{name: getattr(b, name)})) for name in names if name not in (*together, *_FREE)
    ]
    return steps


def _is_other(name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    passports = (first["passport"], second["passport"])
    match name:
        case "weights":
            return passports[0]["model"] != passports[1]["model"]
        case "tokenizer":
            return passports[0]["tokenizer"] != passports[1]["tokenizer"]
        case _:
            return True
