"""The files of a model folder except its weights: architecture, tokenizer, image preparation, provenance."""

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
from clipa_eqx.saved.kinds import (
    CONFIG_FILE,
    PREPROCESS_FILE,
    PROVENANCE_FILE,
    TOKENIZER_FOLDER,
    WEIGHTS_FILE,
    expect_kind,
)
from clipa_eqx.saved.provenance import Provenance
from clipa_eqx.tokenizer.wordpiece import TOKENIZER_FILES, Tokenizer

OPTIMIZER_FILE = "optimizer.safetensors"
"""Moments and counts of an imported training checkpoint; absent for other models."""

FORMER_OPTIMIZER_FILE = "optimiser.safetensors"
"""Its name in model folders of version 0.1.0."""

PIXELS: dict[str, Any] = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}

_SCHEMA = 1


def write_description(
    folder: Path,
    config: CLIPConfig,
    *,
    tokenizer: Tokenizer,
    preprocess: EvalImageConfig,
    provenance: Provenance,
) -> None:
    """Write all files except the weights and the optimizer state."""
    tokenizer.save(folder / TOKENIZER_FOLDER)
    write_json(folder / CONFIG_FILE, {"schema": _SCHEMA, "model": to_json(config)})
    write_json(folder / PREPROCESS_FILE, to_json(preprocess) | PIXELS)
    write_provenance(folder, provenance)


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Write the provenance of a model folder that is being made."""
    write_json(folder / PROVENANCE_FILE, provenance.to_json())


def load_model_config(folder: Path | str) -> CLIPConfig:
    """The architecture of the model in a model folder; no weights are read.

    Raises:
        CheckpointError: ``folder`` is not a model folder, its config is damaged, or a later version wrote it.
    """
    expect_kind(folder, "model folder")
    path = Path(folder) / CONFIG_FILE
    found = read_json(path)
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
    """Image preprocessing of the model in a model folder.

    Raises:
        CheckpointError: the file is missing or damaged, or requires what this version does not support.
    """
    path = folder / PREPROCESS_FILE
    about = read_json(path)
    if {key: about.pop(key, None) for key in PIXELS} != PIXELS:
        raise CheckpointError(f"{path} has another mean or std than ImageNet's, which this version does not support")
    try:
        return from_json(EvalImageConfig, about, where=str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def check_parts(config: CLIPConfig, tokenizer: Tokenizer, preprocess: EvalImageConfig) -> None:
    """Raise ConfigError if the tokenizer or the image preparation does not fit the model."""
    if preprocess.size != config.image.image_size:
        raise ConfigError(f"preprocess.size is {preprocess.size}, the model takes images of {config.image.image_size}")
    if tokenizer.vocab_size > config.text.vocab:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, the model's token table {config.text.vocab} rows"
        )


def optimizer_file(folder: Path) -> Path:
    """The path of the optimizer state in a model folder; its former name if only that exists."""
    former = folder / FORMER_OPTIMIZER_FILE
    return former if former.exists() and not (folder / OPTIMIZER_FILE).exists() else folder / OPTIMIZER_FILE


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as an indented JSON file, into a folder that is being made."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file of a model folder; raises ``CheckpointError`` where there is none."""
    return read_json_object(path, error=CheckpointError, hint="every model folder has it; save the model again")


def _is_model_folder(folder: Path) -> bool:
    """Whether the config is ours and complete; other programs write ``config.json`` and ``model.safetensors`` too."""
    try:
        return read_json(folder / CONFIG_FILE).get("schema") == _SCHEMA and (folder / WEIGHTS_FILE).is_file()
    except CheckpointError:
        return False


MODEL_FOLDER = FolderKind(
    name="model folder",
    files=frozenset(
        {CONFIG_FILE, WEIGHTS_FILE, OPTIMIZER_FILE, FORMER_OPTIMIZER_FILE, PREPROCESS_FILE, PROVENANCE_FILE}
        | {f"{TOKENIZER_FOLDER}/{name}" for name in TOKENIZER_FILES}
    ),
    is_one=_is_model_folder,
)
"""The folders that a new model may replace."""
