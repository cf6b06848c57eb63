"""The files of a saved model but for its weights, and which folder is one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.images.host_pixels import IMAGENET_MEAN, IMAGENET_STD
from clipa_eqx.errors import CheckpointError, ConfigError
from clipa_eqx.json_config import from_json, to_json
from clipa_eqx.json_files import read_json_object
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.replacing import FolderKind
from clipa_eqx.tokenizer import Tokenizer
from clipa_eqx.tokenizer.wordpiece import TOKENIZER_FILES

CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FOLDER = "config.json", "model.safetensors", "tokenizer"
PREPROCESS_FILE, PROVENANCE_FILE = "preprocess.json", "provenance.json"
OPTIMIZER_FILE = "optimizer.safetensors"
"""Moments and counts of an imported training checkpoint; not every model has them."""

_FORMER_OPTIMIZER_FILE = "optimiser.safetensors"  # in model folders of version 0.1.0

PIXELS: dict[str, Any] = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}

_SCHEMA = 1


def write_description(
    folder: Path,
    config: CLIPConfig,
    *,
    tokenizer: Tokenizer,
    preprocess: EvalImageConfig,
    provenance: Mapping[str, Any],
) -> None:
    """Write everything but the weights."""
    tokenizer.save(folder / TOKENIZER_FOLDER)
    write_json(folder / CONFIG_FILE, {"schema": _SCHEMA, "model": to_json(config)})
    write_json(folder / PREPROCESS_FILE, to_json(preprocess) | PIXELS)
    write_json(folder / PROVENANCE_FILE, dict(provenance))


def load_model_config(folder: Path | str) -> CLIPConfig:
    """The architecture of a saved model, without its weights.

    Raises:
        CheckpointError: no such folder, no saved model in it (but a run, for one), or one of a later version.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.parent.is_dir():
        raise CheckpointError(f"there is no model folder {folder}; give a folder that save_model wrote")
    found = read_json(path)
    if "data_sha256" in found:  # the record of a run (training.run_folder), which has the same name
        raise CheckpointError(
            f"{folder} is the work folder of a run; its model is {path.parent / 'model'}, once the run has ended"
        )
    if found.get("schema") != _SCHEMA or not isinstance(found.get("model"), dict):
        raise CheckpointError(
            f"{path} has schema {found.get('schema')!r}, this version of clipa_eqx reads {_SCHEMA}; "
            "use the version that wrote it, or a folder that save_model wrote"
        )
    try:
        return from_json(CLIPConfig, found["model"], where=str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def load_preprocess(folder: Path) -> EvalImageConfig:
    """How the pictures of a saved model are prepared.

    Raises:
        CheckpointError: the file is missing, damaged, or asks for what this version cannot do.
    """
    path = folder / PREPROCESS_FILE
    about = read_json(path)
    if {key: about.pop(key, None) for key in PIXELS} != PIXELS:
        raise CheckpointError(f"{path} asks for another mean or std than ImageNet's, which this version cannot give")
    try:
        return from_json(EvalImageConfig, about, where=str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def check_parts(config: CLIPConfig, tokenizer: Tokenizer, preprocess: EvalImageConfig) -> None:
    """Raises ConfigError where a tokenizer or preprocessing does not fit a model."""
    if preprocess.size != config.image.image_size:
        raise ConfigError(f"preprocess.size is {preprocess.size}, the model's images {config.image.image_size}")
    if tokenizer.vocab_size > config.text.vocab:
        raise ConfigError(f"the tokenizer has {tokenizer.vocab_size} pieces, the model {config.text.vocab} rows")


def optimizer_file(folder: Path) -> Path:
    """The optimizer state of a model folder, under its former name where only that is there."""
    former = folder / _FORMER_OPTIMIZER_FILE
    return former if former.exists() and not (folder / OPTIMIZER_FILE).exists() else folder / OPTIMIZER_FILE


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """An object as an indented JSON file."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file of a model folder; raises ``CheckpointError`` where there is none."""
    return read_json_object(path, error=CheckpointError, hint="every model folder has it; save the model again")


def _is_model_folder(folder: Path) -> bool:
    """Whether its config is one of ours; other programs have a ``config.json`` and ``model.safetensors`` too."""
    try:
        return read_json(folder / CONFIG_FILE).get("schema") == _SCHEMA and (folder / WEIGHTS_FILE).is_file()
    except CheckpointError:
        return False


MODEL_FOLDER = FolderKind(
    name="model folder",
    files=frozenset(
        {CONFIG_FILE, WEIGHTS_FILE, OPTIMIZER_FILE, _FORMER_OPTIMIZER_FILE, PREPROCESS_FILE, PROVENANCE_FILE}
        | {f"{TOKENIZER_FOLDER}/{name}" for name in TOKENIZER_FILES}
    ),
    is_one=_is_model_folder,
)
"""What may be replaced by a saved model."""
