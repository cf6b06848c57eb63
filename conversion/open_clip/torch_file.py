"""State dicts that ``torch.save`` wrote, read without executing anything in them."""

import importlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np

from clipa_eqx.errors import ConversionError, listed, pip_install
from clipa_eqx.progress import progress_bar
from clipa_eqx.saved.leaf_file import Leaf
from conversion.open_clip.layouts import check_layout
from conversion.weights.tensors import BFLOAT16

SUFFIXES = (".bin", ".pt", ".pth")

_LARGEST_PICKLE = 1 << 26  # bytes
_READ_BYTES = 1 << 22


class TorchFile:
    """A state dict that ``torch.save`` wrote, as a ``TensorFile``.

    Raises:
        ConversionError: torch is not installed, or the file is damaged or is not a zip of plain tensors.
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


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_archive(path: Path) -> None:
    """Refuse compressed entries, so that no entry is larger than the file, and entries outside of the archive."""
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ConversionError(
            f"{path} is not a zip file as torch.save writes it ({error}); save it again with torch 1.6 or later"
        ) from error
    names = [entry.filename for entry in entries]
    if any(Path(name).parts[1:2] == ("code",) for name in names) and any(n.endswith("constants.pkl") for n in names):
        raise ConversionError(
            f"{path} is a TorchScript archive, as OpenAI published its CLIP models, and not a state dict. CLIPA's own "
            "models are not of this kind; export another model with torch.jit.load(FILE).state_dict() and torch.save"
        )
    problems = [f"{name} occurs twice" for name in {n for n in names if names.count(n) > 1}]
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            problems.append(f"{entry.filename} is compressed; torch.save writes uncompressed entries")
        if entry.filename.startswith("/") or ".." in entry.filename.split("/"):
            problems.append(f"{entry.filename} points outside of the archive")
        if entry.filename.endswith("data.pkl") and entry.file_size > _LARGEST_PICKLE:
            problems.append(f"{entry.filename} has {entry.file_size:,} bytes, more than {_LARGEST_PICKLE:,}")
    if sum(entry.file_size for entry in entries) > size:
        problems.append("its entries are larger than the file")
    if problems:
        raise ConversionError(f"{path} is refused: {listed(problems)}")


def _check_stored(path: Path) -> None:
    """Check the CRC-32 of every entry; torch maps the file and does not check it."""
    name = ""
    try:
        with (
            zipfile.ZipFile(path) as archive,
            progress_bar(what="check", total=path.stat().st_size, unit="B") as bar,
        ):
            for entry in archive.infolist():
                name = entry.filename
                with archive.open(entry) as stored:
                    while data := stored.read(_READ_BYTES):
                        bar.update(len(data))
    except Exception as error:  # zipfile raises many kinds of exceptions on damaged bytes
        raise ConversionError(f"damaged: {name} of {path} cannot be read ({error}); get the file again") from error


def _load_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        torch: Any = importlib.import_module("torch")  # neither torch nor its types are in the default environment
    except ImportError as error:
        raise ConversionError(
            f"{path} cannot be read without torch: {pip_install('torch')}; or give the .safetensors file"
        ) from error
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch does not document what its reader raises
        raise ConversionError(
            f"{path} is damaged or holds other objects than plain tensors ({first_line(error)})"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ConversionError(f"{path} holds {type(state).__name__}, expected a dictionary of tensors")
    check_layout([name for name in cast("dict[Any, Any]", state) if isinstance(name, str)], where=path)
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
            except (
                RuntimeError,
                TypeError,
            ) as error:  # a tensor without data, or with a pending negation or conjugation
                problems.append(f"{name} has no plain values ({first_line(error)})")
    if problems:
        raise ConversionError(f"{path}: {listed(problems)}")
    return arrays
