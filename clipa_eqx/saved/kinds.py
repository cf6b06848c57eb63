"""The one decision what a folder is: a run folder, a model folder, a folder of adapters, a record folder, or none."""

import json
from pathlib import Path
from typing import Any, Literal, cast

from clipa_eqx.data.manifest import MANIFEST_NAME
from clipa_eqx.errors import CheckpointError

CONFIG_FILE = "config.json"
"""In a model folder its architecture, in a run folder the record of the run."""

WEIGHTS_FILE, TOKENIZER_FOLDER = "model.safetensors", "tokenizer"
PREPROCESS_FILE, PROVENANCE_FILE = "preprocess.json", "provenance.json"
ADAPTERS_FILE, FACTORS_FILE = "adapters.json", "adapters.safetensors"
"""In a folder of adapters what they are, and their factors."""

RECORD_FILE = "record/metadata"
"""In a checkpoint the record of its run; ``metadata`` is the name that Orbax gives to a JSON file."""

METRICS_NAME, CHECKPOINTS_NAME, MODEL_NAME = "metrics.jsonl", "checkpoints", "model"

ADAPTERS_NAME = "adapters"
"""Folder of a LoRA run for the factors alone, next to the model."""

FROZEN_NAME = "frozen_leaves"
"""Folder of a run next to its checkpoints for leaves that are never trained; stored as a checkpoint, once."""

Kind = Literal["run folder", "model folder", "folder of adapters", "record folder", "other folder", "file", "missing"]


def kind_of(path: Path | str) -> Kind:
    """The kind of a path, from file names and the keys of its JSON files. Weights and checkpoints are not opened.

    A folder of ours stays of its kind when files are damaged or lost, as long as what is left cannot be another
    program's: the error then names the damaged file.
    """
    path = Path(path)
    if not path.is_dir():
        return "file" if path.exists() else "missing"
    config, manifest = _keys(path / CONFIG_FILE), _keys(path / MANIFEST_NAME)
    if config is not None and "data_sha256" in config:
        return "run folder"
    if config is not None and {"schema", "model"} <= config:
        return "model folder"
    if _has_record_of_run(path) or _has_files_of_run(path, is_config_unreadable=config == _UNREADABLE):
        return "run folder"
    if _has_files_of_model(path):
        return "model folder"
    if _has_adapters(path):
        return "folder of adapters"
    if manifest is not None and (manifest == _UNREADABLE or "shards" in manifest):
        return "record folder"
    return "other folder"


def what_is(path: Path | str) -> str:
    """The statement what a path is, as every error message has it; for a run folder also where its model is.

    >>> what_is("runs/no-such-run")
    'runs/no-such-run does not exist'
    """
    match kind_of(path):
        case "run folder":
            return f"{path} is a run folder; its model is {Path(path) / MODEL_NAME}, written when the run ends"
        case "missing":
            return f"{path} does not exist"
        case "other folder":
            return f"{path} is a folder that clipa_eqx did not write"
        case kind:
            return f"{path} is a {kind}"


def expect_kind(path: Path | str, *expected: Kind, where: str = "", other: str = "") -> Kind:
    """The kind of a path, which must be one of ``expected``.

    Args:
        where: what named the path, such as a config field.
        other: what else the caller accepts, in words.

    Raises:
        CheckpointError: the path is of another kind; the message says which, and what was expected.
    """
    kind = kind_of(path)
    if kind not in expected:
        *first, last = [*(f"a {one}" for one in expected), *([other] if other else [])]
        choices = f"{', '.join(first)} or {last}" if first else last
        raise CheckpointError(f"{f'{where}: ' if where else ''}{what_is(path)}; expected {choices}")
    return kind


_UNREADABLE = frozenset({"unreadable JSON"})


def _keys(path: Path) -> frozenset[str] | None:
    """The keys of a JSON object, ``_UNREADABLE`` for a damaged file, None if there is no file."""
    if not path.is_file():
        return None
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return _UNREADABLE
    return frozenset(cast("dict[str, Any]", found)) if isinstance(found, dict) else _UNREADABLE


def _has_record_of_run(path: Path) -> bool:
    """Whether a checkpoint has the record of a run; other programs use Orbax too, but have no such file."""
    return any((path / CHECKPOINTS_NAME).glob(f"*/{RECORD_FILE}"))


def _has_files_of_run(path: Path, *, is_config_unreadable: bool) -> bool:
    """Whether two traces of a run are there; one alone may be another program's."""
    traces = (
        is_config_unreadable,
        (path / METRICS_NAME).is_file(),
        (path / CHECKPOINTS_NAME).is_dir(),
        (path / MODEL_NAME).is_dir() and kind_of(path / MODEL_NAME) == "model folder",
    )
    return sum(traces) >= 2


def _has_files_of_model(path: Path) -> bool:
    # Other programs have model.safetensors and tokenizer/ too, but not under these names how images are prepared.
    is_ours = (path / PREPROCESS_FILE).is_file() or (path / PROVENANCE_FILE).is_file()
    return is_ours and ((path / WEIGHTS_FILE).is_file() or (path / TOKENIZER_FOLDER).is_dir())


def _has_adapters(path: Path) -> bool:
    about, has_factors = _keys(path / ADAPTERS_FILE), (path / FACTORS_FILE).is_file()
    return about is not None and ({"schema", "alpha", "base"} <= about or has_factors)
