"""Files of an open_clip model: a weight file, a folder, or a repository of the Hugging Face hub to download."""

import contextlib
import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

from clipa_eqx.errors import CheckpointError, ConversionError, pip_install
from clipa_eqx.saved.kinds import WEIGHTS_FILE as MODEL_WEIGHTS
from clipa_eqx.saved.kinds import kind_of, what_is
from conversion.open_clip import torch_file
from conversion.open_clip.config import CONFIG_FILE
from conversion.open_clip.tokenizer import JSON_FILE, SETTINGS_FILE, VOCAB_FILE

HUB = "hf-hub:"
WEIGHTS_FILE = "open_clip_model.safetensors"
WEIGHTS_FILES = (
    WEIGHTS_FILE,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
"""In the order in which open_clip looks for them."""

_log = logging.getLogger(__name__)


class OpenClipSource(NamedTuple):
    """The files of a model; ``config`` is None for a weight file alone, ``folder`` may hold the tokenizer."""

    weights: Path
    config: Path | None
    folder: Path


def find_source(source: str) -> OpenClipSource:
    """Find the files of a weight file, a folder, or ``hf-hub:REPO`` or ``hf-hub:REPO@REVISION``, which is downloaded.

    Raises:
        ConversionError: there is no such model, or the hub cannot be reached.
        CheckpointError: it is a run folder, a record folder or a folder of adapters.
    """
    if source.startswith(HUB):
        return _download(source.removeprefix(HUB))
    path = Path(source)
    folder = path.parent if path.name == MODEL_WEIGHTS else path
    # A folder with open_clip's config is open_clip's, whatever else is in it.
    if kind_of(folder) == "model folder" and _config_in(folder) is None:
        raise ConversionError(f"{what_is(folder)} already; there is nothing to import")
    if path.is_dir():
        found = [path / name for name in WEIGHTS_FILES if (path / name).is_file()]
        if not found and kind_of(path) in ("run folder", "record folder", "folder of adapters"):
            raise CheckpointError(f"{what_is(path)}; expected an open_clip model")
        if not found:
            there = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
            raise ConversionError(
                f"{path} holds {there}, expected one of {', '.join(WEIGHTS_FILES)}; give the weight file"
            )
        return OpenClipSource(found[0], _config_in(path), path)
    if not path.is_file():
        raise ConversionError(f"there is no file or folder {path}; give one, or {HUB}OWNER/NAME")
    if path.suffix not in (".safetensors", *torch_file.SUFFIXES):
        other = "; for .npz use `python -m conversion.flax_clipa import`" if path.suffix == ".npz" else ""
        raise ConversionError(
            f"{path} is not a weight file; expected .safetensors, {', '.join(torch_file.SUFFIXES)}{other}"
        )
    return OpenClipSource(path, _config_in(path.parent), path.parent)


def _config_in(folder: Path) -> Path | None:
    path = folder / CONFIG_FILE
    return path if path.is_file() else None


def _download(name: str) -> OpenClipSource:
    """Download a repository, ``OWNER/NAME`` or ``OWNER/NAME@REVISION``."""
    repo, _, revision = name.partition("@")
    try:
        import huggingface_hub
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as error:
        raise ConversionError(
            f"{HUB}{name} cannot be downloaded without the package huggingface_hub: "
            f"{pip_install('huggingface_hub')}; or download the repository by other means and give its folder"
        ) from error
    _log.info("downloading %s%s (without a network this fails after half a minute)", HUB, name)
    download = huggingface_hub.hf_hub_download  # importing it sets the level of the library's log
    if revision:
        download = partial(download, revision=revision)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs two warnings for every retry
    problem: Exception | None = None
    try:
        config = Path(download(repo, CONFIG_FILE))
        for file in WEIGHTS_FILES:
            try:
                weights = Path(download(repo, file))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue
            for extra in (VOCAB_FILE, JSON_FILE, SETTINGS_FILE):
                with contextlib.suppress(EntryNotFoundError):  # the config names the vocabulary then
                    download(repo, extra)
            return OpenClipSource(weights, config, config.parent)
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError, OSError, ValueError) as error:
        problem = error
    if problem is None:
        raise ConversionError(f"{HUB}{name} holds none of {', '.join(WEIGHTS_FILES)}")
    raise ConversionError(
        f"{HUB}{name} cannot be downloaded ({torch_file.first_line(problem)}); check name and network, or copy the "
        "repository from a machine that has it and give its folder"
    ) from problem
