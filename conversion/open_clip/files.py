"""An open_clip model, opened: its tensors under the names of the rule table, its config, its metadata."""

import contextlib
from collections.abc import Generator, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from clipa_eqx.errors import ConversionError
from clipa_eqx.saved.leaf_file import Leaf, LeafReader
from conversion.open_clip import torch_file
from conversion.open_clip.config import OpenClipConfig, load_open_clip_config
from conversion.open_clip.layouts import check_layout, short_name
from conversion.open_clip.mapping import numerics_in
from conversion.open_clip.sources import OpenClipSource, find_source
from conversion.weights.numerics import TowerNumerics
from conversion.weights.tensors import TensorFile, TensorView


class OpenedModel(NamedTuple):
    """An open model.

    Attributes:
        source: its files.
        tensors: the tensors under the names of the rule table.
        config: the contents of ``open_clip_config.json``, if there is one.
        numerics: norm epsilon and GELU per tower, if the metadata of the weight file record them.
        metadata: the metadata of the weight file.
    """

    source: OpenClipSource
    tensors: TensorFile
    config: OpenClipConfig | None
    numerics: TowerNumerics | None
    metadata: Mapping[str, str]


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


@contextlib.contextmanager
def open_model(source: str) -> Generator[OpenedModel]:
    """Open a weight file, a folder or ``hf-hub:REPO``.

    Raises:
        ConversionError: there is no such model, it is damaged, or its config or metadata are not supported.
        CheckpointError: the safetensors file is damaged.
    """
    found = find_source(source)
    config = None if found.config is None else load_open_clip_config(found.config)
    make = torch_file.TorchFile if found.weights.suffix in torch_file.SUFFIXES else SafetensorsFile
    with make(found.weights) as file:
        check_layout(file.tensors, where=found.weights)
        numerics = numerics_in(file.metadata, where=str(found.weights))
        yield OpenedModel(found, TensorView(file, file_names(file.tensors)), config, numerics, file.metadata)


def file_names(names: Mapping[str, Leaf]) -> dict[str, str]:
    """The name in the file for each name of the rule table, which lacks what wrappers add and the prefix ``text.``.

    Raises:
        ConversionError: two names of the file mean the same tensor.
    """
    found: dict[str, str] = {}
    for name in names:
        short = short_name(name)
        if short in found:
            raise ConversionError(f"the file holds {short} twice, as {found[short]} and as {name}")
        found[short] = name
    return found
