"""Where an open_clip model lies: a file, a folder or a repository of the Hugging Face hub; and torch's own files."""

import contextlib
import importlib
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, cast

import numpy as np
from tqdm import tqdm

from clipa_eqx.errors import CheckpointError, ConversionError, listed
from clipa_eqx.saved.kinds import WEIGHTS_FILE as MODEL_WEIGHTS
from clipa_eqx.saved.kinds import kind_of, what_is
from clipa_eqx.saved.leaf_file import Leaf, LeafReader
from conversion.open_clip.config import CONFIG_FILE
from conversion.weights.tensors import BFLOAT16

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

TORCH_SUFFIXES = (".bin", ".pt", ".pth")

_LARGEST_PICKLE = 1 << 26
_READ_BYTES = 1 << 22

_log = logging.getLogger(__name__)


class OpenClipSource(NamedTuple):
    """The files of a model; ``config`` is None for weights alone, ``folder`` holds the tokenizer if there is one."""

    weights: Path
    config: Path | None
    folder: Path


def find_source(source: str) -> OpenClipSource:
    """The files that ``source`` names: a weight file, a folder, or ``hf-hub:REPO``, which is downloaded.

    Raises:
        ConversionError: nothing is there, or the hub cannot be reached.
        CheckpointError: it is a run folder or a record folder.
    """
    if source.startswith(HUB):
        return _download(source.removeprefix(HUB))
    path = Path(source)
    folder = path.parent if path.name == MODEL_WEIGHTS else path
    if kind_of(folder) == "model folder":
        raise ConversionError(f"{what_is(folder)} already; there is nothing to import")
    if path.is_dir():
        found = [path / name for name in WEIGHTS_FILES if (path / name).is_file()]
        if not found and kind_of(path) in ("run folder", "record folder"):
            raise CheckpointError(f"{what_is(path)}; expected a model of open_clip")
        if not found:
            there = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
            raise ConversionError(f"{path} holds none of {', '.join(WEIGHTS_FILES)} but {there}; give the weight file")
        return OpenClipSource(found[0], _config_in(path), path)
    if not path.is_file():
        raise ConversionError(f"there is no file or folder {path}; give one, or {HUB}OWNER/NAME")
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise ConversionError(f"{path} ends in none of .safetensors, {', '.join(TORCH_SUFFIXES)}")
    return OpenClipSource(path, _config_in(path.parent), path.parent)


def renamed(names: Mapping[str, Leaf]) -> dict[str, str]:
    """Our rule table's name for each name of a file: without ``module.``, and the text tower at the top.

    Raises:
        ConversionError: two names of the file mean the same tensor.
    """
    found: dict[str, str] = {}
    for name in names:
        short = name.removeprefix("module.").removeprefix("text.")
        if short in found:
            raise ConversionError(f"the file holds {short} twice, as {found[short]} and as {name}")
        found[short] = name
    return found


class SafetensorsFile:
    """A foreign safetensors file as a ``TensorFile``. Raises ``CheckpointError`` for a damaged one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = LeafReader(path)
        self.metadata: Mapping[str, str] = self._reader.metadata
        self.tensors: Mapping[str, Leaf] = self._reader.leaves

    def read(self, name: str) -> np.ndarray:
        return self._reader.read(name)

    def __enter__(self) -> "SafetensorsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._reader.__exit__(kind, error, trace)


class TorchFile:
    """A state dict that ``torch.save`` wrote, as a ``TensorFile``; nothing in it is executed.

    Raises:
        ConversionError: torch is not installed; the file is no zip of plain tensors, or damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        _check_archive(self.path)
        _check_stored(self.path)
        self.metadata: Mapping[str, str] = {}
        self._arrays = _load_torch(self.path)
        self.tensors: Mapping[str, Leaf] = {
            name: Leaf(array.shape, array.dtype) for name, array in self._arrays.items()
        }

    def read(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __enter__(self) -> "TorchFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._arrays = {}


def _config_in(folder: Path) -> Path | None:
    path = folder / CONFIG_FILE
    return path if path.is_file() else None


def _download(repo: str) -> OpenClipSource:
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
            f'{HUB}{repo} needs the package huggingface_hub: pip install "clipa_eqx[hub]"; or download the repository '
            "by other means and give its folder"
        ) from error
    _log.info("downloading %s%s (where there is no network, it is tried for half a minute)", HUB, repo)
    download = huggingface_hub.hf_hub_download  # loads a module that sets the level of the library's log
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns of every retry, twice
    problem: Exception | None = None
    try:
        config = Path(download(repo, CONFIG_FILE))
        for name in WEIGHTS_FILES:
            try:
                weights = Path(download(repo, name))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue
            for extra in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
                with contextlib.suppress(EntryNotFoundError):  # then the config names the vocabulary
                    download(repo, extra)
            return OpenClipSource(weights, config, config.parent)
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError, OSError, ValueError) as error:
        problem = error
    if problem is None:
        raise ConversionError(f"{HUB}{repo} holds none of {', '.join(WEIGHTS_FILES)}")
    raise ConversionError(
        f"{HUB}{repo} cannot be downloaded ({_first_line(problem)}); check name and network, or copy the repository "
        "from a machine that has it and give its folder"
    ) from problem


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_archive(path: Path) -> None:
    """A zip whose entries are stored as they are, so that no entry is larger than the file."""
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ConversionError(
            f"{path} is no zip that torch.save writes ({error}); save it again with a torch of this decade"
        ) from error
    names = [entry.filename for entry in entries]
    problems = [f"{name} is there twice" for name in {n for n in names if names.count(n) > 1}]
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            problems.append(f"{entry.filename} is compressed; torch.save stores")
        if entry.filename.startswith("/") or ".." in entry.filename.split("/"):
            problems.append(f"{entry.filename} leads out of the archive")
        if entry.filename.endswith("data.pkl") and entry.file_size > _LARGEST_PICKLE:
            problems.append(f"{entry.filename} has {entry.file_size:,} bytes")
    if sum(entry.file_size for entry in entries) > size:
        problems.append("its entries are larger than the file")
    if problems:
        raise ConversionError(f"{path} is refused: {listed(problems)}")


def _check_stored(path: Path) -> None:
    """Every entry has the checksum that the archive states; torch, which maps the file, never looks."""
    name = ""
    try:
        with (
            zipfile.ZipFile(path) as archive,
            tqdm(total=path.stat().st_size, desc="check", unit="B", unit_scale=True, delay=2) as bar,
        ):
            for entry in archive.infolist():
                name = entry.filename
                with archive.open(entry) as stored:
                    while data := stored.read(_READ_BYTES):
                        bar.update(len(data))
    except Exception as error:  # on damaged bytes zipfile raises nearly anything
        raise ConversionError(f"damaged: {name} of {path} cannot be read ({error}); get the file again") from error


def _load_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        torch: Any = importlib.import_module("torch")  # has no place in the default environment, nor its types
    except ImportError as error:
        raise ConversionError(
            f'{path} needs torch to be read: pip install "clipa_eqx[open-clip]"; or give the .safetensors file'
        ) from error
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch has no list of what its reader raises
        raise ConversionError(f"{path} holds no plain tensors, or is damaged ({_first_line(error)})") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ConversionError(f"{path} holds {type(state).__name__}, expected a dictionary of tensors")
    kinds = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: BFLOAT16}
    problems: list[str] = []
    arrays: dict[str, np.ndarray] = {}
    for name, value in cast("dict[Any, Any]", state).items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            problems.append(f"{name!r} is {type(value).__name__}, expected a tensor")
        elif value.dtype not in kinds or value.layout != torch.strided:
            problems.append(f"{name} is {value.dtype} {value.layout}, expected {', '.join(map(str, kinds))}")
        else:
            try:
                plain: Any = value.detach()
                is_half = value.dtype == torch.bfloat16
                arrays[name] = plain.view(torch.int16).numpy().view(BFLOAT16) if is_half else plain.numpy()
            except (RuntimeError, TypeError) as error:  # without data, or to be negated or conjugated when read
                problems.append(f"{name} has no plain values ({_first_line(error)})")
    if problems:
        raise ConversionError(f"{path}: {listed(problems)}")
    return arrays
