"""Scoring a model again with one difference at a time taken from another result."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.images.evaluation import EvalImageConfig, eval_image
from clipa_eqx.data.images.host_pixels import IMAGENET_MEAN, IMAGENET_STD
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.devices import open_devices
from clipa_eqx.errors import CheckpointError, ClipaError, ConfigError, DataError
from clipa_eqx.evals.contrastive import ContrastiveConfig
from clipa_eqx.evals.evaluation import EvaluationConfig, open_evaluation, run_evaluation
from clipa_eqx.evals.few_shot import FewShotConfig
from clipa_eqx.evals.linear_probe import LinearProbeConfig
from clipa_eqx.evals.passport import data_identity
from clipa_eqx.evals.retrieval import RetrievalConfig
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.json_config import from_json
from clipa_eqx.models.clip import CLIP
from clipa_eqx.programs.results import decides, is_weights_equal
from clipa_eqx.programs.scored import Scored, load_scored
from clipa_eqx.sharding import MeshConfig, make_mesh
from clipa_eqx.surgery.patches import with_pixel_statistics
from clipa_eqx.tokenizer.wordpiece import Tokenizer

_CONFIGS: Mapping[str, type[EvaluationConfig]] = {
    "zero-shot": ZeroShotConfig,
    "retrieval": RetrievalConfig,
    "contrastive": ContrastiveConfig,
    "few-shot": FewShotConfig,
    "linear-probe": LinearProbeConfig,
}
_STATISTICS = (tuple(IMAGENET_MEAN), tuple(IMAGENET_STD))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folders:
    """Present places of models and records.

    Attributes:
        data: records to score. If they are those of the second result, the first one's are in the folder that it names.
        train: records that a classifier is fitted to, likewise; None takes the folders of the results.
        models: model or run folder of each result; None takes the one in the result.
    """

    data: str
    train: str | None = None
    models: tuple[Path | None, Path | None] = (None, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rescored:
    """One scoring.

    Attributes:
        name: the difference that was taken from the second result, by its path in the passport; "first" and "second"
            with none and all of them.
        scores: each score by its name; empty if it could not be computed.
        note: the reason for that, or a condition of the scores; empty if there is none.
    """

    name: str
    scores: Mapping[str, float]
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Setup:
    """Everything that decides a score.

    Attributes:
        statistics: mean and standard deviation of pixels.
    """

    model: CLIP
    tokenizer: Tokenizer
    preprocess: EvalImageConfig
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    config: EvaluationConfig


def rescore(
    first: Mapping[str, Any], second: Mapping[str, Any], folders: Folders, *, workers: int = 0
) -> Iterator[Rescored]:
    """Score the first model as it was, with each difference of the second result alone, and with all of them.

    Args:
        first, second: results of one suite, as ``read_result`` returns them.
        workers: extra processes that decode images.

    Raises:
        CheckpointError: a model is missing, or is not the one that was scored.
        ConfigError: a result does not hold the settings of this version, or its suite has no training records.
        DataError: the records cannot be scored as those of the first result.
    """
    given = {"data": folders.data, "train": folders.train}
    places = {name: _places(first, second, name, folder) for name, folder in given.items()}
    mesh = make_mesh(MeshConfig(), devices=open_devices())
    paths = [given or Path(one["model"]["path"]) for one, given in zip((first, second), folders.models, strict=True)]
    loaded = {path: load_scored(path, mesh) for path in dict.fromkeys(paths)}
    for result, path in zip((first, second), paths, strict=True):
        _check_model(result, loaded[path], path)
    data, other_data = places["data"]
    train, other_train = places["train"]
    a = _setup(first, loaded[paths[0]], data=data or folders.data, train=train or folders.train)
    b = _setup(
        second,
        loaded[paths[1]],
        data=other_data or a.config.data,
        train=other_train or getattr(a.config, "train", None),
    )
    scored: dict[tuple[Any, ...], dict[str, float]] = {}

    def score(name: str, setup: _Setup, note: str = "") -> Rescored:
        # Models and tokenizers are compared by identity: each step shares those of the results that it leaves alone.
        key = (id(setup.model), id(setup.tokenizer), setup.preprocess, setup.statistics, setup.config)
        if key not in scored:
            scored[key] = _score(setup, mesh, workers=workers)
        return Rescored(name=name, scores=scored[key], note=note)

    yield score("first", a, _other_records(first, a.config, data=data, train=train))
    for name, changed in _steps(a, b, first, second):
        if (name == "data" and other_data is None) or (name == "train" and other_train is None):
            note = f"{second['settings'][name]} does not have the records of the second result"
            yield Rescored(name=name, scores={}, note=note)
            continue
        try:
            yield score(name, changed())
        except ClipaError as error:
            yield Rescored(name=name, scores={}, note=str(error))
    try:
        yield score("second", b, _other_records(second, b.config, data=other_data, train=other_train))
    except ClipaError as error:
        yield Rescored(name="second", scores={}, note=str(error))


def _other_records(result: Mapping[str, Any], config: EvaluationConfig, *, data: str | None, train: str | None) -> str:
    """A note on folders with other records than the result has; empty if there are none."""
    found = {"data": data, "train": train}
    others = [getattr(config, name) for name, folder in found.items() if folder is None and name in result["passport"]]
    return f"{' and '.join(others)} with other records than in the result" if others else ""


def _check_model(result: Mapping[str, Any], scored: Scored, path: Path) -> None:
    """Check that a folder still has the model of a result; raises CheckpointError."""
    recorded = result["passport"]
    same_weights = is_weights_equal(recorded["model"]["weights"], scored.identity)
    if not same_weights or recorded["tokenizer"]["vocab_sha256"] != scored.tokenizer.vocab_sha256:
        what = "vocabulary" if same_weights else "weights"
        raise CheckpointError(
            f"{path} has other {what} than when it was scored; give the folder of the model that was scored with "
            "--first-model or --second-model, or score this one again"
        )


def _places(
    first: Mapping[str, Any], second: Mapping[str, Any], name: str, given: str | None
) -> tuple[str | None, str | None]:
    """The folders with the records of both results; None for one whose records are not found.

    A given folder that has other records than both results takes their place, so the first entry is None, and the
    second too if both results have the same records.

    Raises:
        ConfigError: a folder is given, and the suite needs none.
        DataError: the given folder has no records.
    """
    recorded = [one["passport"][name] for one in (first, second) if name in one["passport"]]
    if given is not None and not recorded:
        raise ConfigError(f"--{name} has no effect on results of the suite {first['suite']}; leave it out")
    is_of_result = True
    if given is not None:
        found = data_identity(open_records(given))
        is_of_result = any(_same_records(found, one) for one in recorded)
    place = _find(first, name, given) if is_of_result else None
    are_equal = len(recorded) == 2 and _same_records(recorded[0], recorded[1])
    return place, place if are_equal else _find(second, name, given)


def _find(result: Mapping[str, Any], name: str, given: str | None) -> str | None:
    """The folder with the records of a result: the given one or the one in the result; None if neither has them."""
    recorded = result["passport"].get(name)
    if recorded is None:
        return None
    for folder in (given, result["settings"][name]):
        try:
            if folder is not None and _same_records(data_identity(open_records(folder)), recorded):
                return folder
        except DataError:
            continue
    return None


def _same_records(found: Mapping[str, Any], recorded: Mapping[str, Any]) -> bool:
    return all(found[name] == recorded.get(name) for name in ("count", "content_fingerprint", "shards_sha256"))


def _setup(result: Mapping[str, Any], scored: Scored, *, data: str, train: str | None) -> _Setup:
    settings = {**result["settings"], "data": data} | ({} if train is None else {"train": train})
    image = result["passport"]["image"]
    return _Setup(
        model=scored.model,
        tokenizer=scored.tokenizer,
        preprocess=from_json(EvalImageConfig, result["preprocess"], where="the result's preprocess"),
        statistics=(tuple(image["mean"]), tuple(image["std"])),
        config=from_json(_CONFIGS[result["suite"]], settings, where="the result's settings"),
    )


def _steps(
    a: _Setup, b: _Setup, first: Mapping[str, Any], second: Mapping[str, Any]
) -> Iterator[tuple[str, Callable[[], _Setup]]]:
    """Each difference by its name, and a function that gives ``a`` with it taken from ``b`` alone."""
    yield from _model_steps(a, b, first, second)
    passports = first["passport"], second["passport"]
    if passports[0]["tokenizer"]["vocab_sha256"] != passports[1]["tokenizer"]["vocab_sha256"]:
        yield "tokenizer/vocab_sha256", partial(dataclasses.replace, a, tokenizer=b.tokenizer)
    if a.statistics != b.statistics:
        yield "image/mean and image/std", partial(dataclasses.replace, a, statistics=b.statistics)
    for name in ("resize", "mode"):
        if getattr(a.preprocess, name) != getattr(b.preprocess, name):
            yield f"image/{name}", partial(_with_preprocess, a, {name: getattr(b.preprocess, name)})
    for name in ("data", "train"):
        recorded = [one.get(name) for one in passports]
        if all(recorded) and not _same_records(recorded[0], recorded[1]):
            yield name, partial(_with_settings, a, {name: getattr(b.config, name)})
    for names in _settings(a.config):
        values = {name: getattr(b.config, name) for name in names}
        if any(getattr(a.config, name) != value for name, value in values.items()):
            yield f"settings/{names[0]}", partial(_with_settings, a, values)


def _model_steps(
    a: _Setup, b: _Setup, first: Mapping[str, Any], second: Mapping[str, Any]
) -> Iterator[tuple[str, Callable[[], _Setup]]]:
    """Weights and numerics apart if the leaves of both models have the same shapes, else the model as one."""
    models = first["passport"]["model"], second["passport"]["model"]
    (leaves, form), (other_leaves, other_form) = (jax.tree.flatten(one.model) for one in (a, b))
    if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in other_leaves]:
        yield "model", partial(_with_model, a, b.model)
        return
    if not is_weights_equal(models[0]["weights"], models[1]["weights"]):
        yield "model/weights", partial(_with_model, a, jax.tree.unflatten(form, other_leaves))
    if models[0]["config"] != models[1]["config"]:
        yield "model/config", partial(_with_model, a, jax.tree.unflatten(other_form, leaves))


def _with_model(setup: _Setup, model: CLIP) -> _Setup:
    """The setup with another model, and with images of its size."""
    sized = _with_preprocess(setup, {"size": model.config.image.image_size})
    return dataclasses.replace(sized, model=model)


def _with_preprocess(setup: _Setup, values: Mapping[str, Any]) -> _Setup:
    return dataclasses.replace(setup, preprocess=dataclasses.replace(setup.preprocess, **values))


def _with_settings(setup: _Setup, values: Mapping[str, Any]) -> _Setup:
    return dataclasses.replace(setup, config=dataclasses.replace(setup.config, **values))


def _settings(config: EvaluationConfig) -> list[tuple[str, ...]]:
    """Names of settings that change a score; those that only make sense together are in one entry."""
    together = ("class_names", "class_names_file")
    names = [field.name for field in dataclasses.fields(config) if field.name not in ("data", "train", *together)]
    suite = next(suite for suite, kind in _CONFIGS.items() if isinstance(config, kind))
    found: list[tuple[str, ...]] = [(name,) for name in names if decides(f"settings/{name}", suite=suite)]
    return [together, *found] if isinstance(config, ZeroShotConfig) else found


def _score(setup: _Setup, mesh: Mesh, *, workers: int) -> dict[str, float]:
    model = setup.model
    if setup.statistics != _STATISTICS:
        model = with_pixel_statistics(model, mean=setup.statistics[0], std=setup.statistics[1]).model
    return run_evaluation(
        open_evaluation(setup.config, tokenizer=setup.tokenizer, length=model.config.text.length),
        model,
        tokenizer=setup.tokenizer,
        prepare_image=partial(eval_image, config=setup.preprocess),
        stream=StreamConfig(workers=workers),
        mesh=mesh,
        progress=True,
    ).scores()
