"""A model folder under the interface of open_clip models, for programs that evaluate those, such as clip_benchmark."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipa_eqx.errors import ConfigError, ConversionError, pip_install
from clipa_eqx.evals.encode import encode_images, encode_texts, local_rows
from clipa_eqx.evals.prompts import prompt_reduction
from clipa_eqx.saved.model import LoadedModel, Preprocess, load_model


@dataclass(frozen=True, kw_only=True)
class OpenClipModel:
    """The encoders of a model, from tensors of torch to tensors of torch, with the numbers of our own scoring.

    Attributes:
        loaded: the model folder.
        device: the device of torch on which results are placed; the work is done by JAX.
    """

    loaded: LoadedModel
    device: str = "cpu"

    def encode_image(self, image: Any, normalize: bool = False) -> Any:
        """Unit embeddings float32[batch, embed] of images from ``OpenClipTransform``: uint8[batch, 3, height, width].

        Args:
            image: the stacked results of the transform.
            normalize: accepted for compatibility; embeddings always have unit length.

        Raises:
            ConfigError: the images are not uint8, or not of the model's size.
        """
        pixels = np.asarray(image.cpu())
        if pixels.dtype != np.uint8 or pixels.ndim != 4:
            raise ConfigError(
                f"encode_image takes uint8[batch 3 height width] from this model's transform, got {pixels.dtype}"
                f"{list(pixels.shape)}; the model normalizes pixels itself"
            )
        rows = _padded(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)))
        return self._tensor(encode_images(self.loaded.model, rows), rows=len(pixels))

    def encode_text(self, text: Any, normalize: bool = False) -> Any:
        """Unit embeddings float32[batch, embed] of token ids int[batch, length] from ``OpenClipTokenizer``.

        Args:
            text: the ids.
            normalize: accepted for compatibility; embeddings always have unit length.

        Raises:
            ConfigError: the ids have another length than the text tower, or are not of its vocabulary.
        """
        ids = np.asarray(text.cpu()).astype(np.int32)
        return self._tensor(encode_texts(self.loaded.model, _padded(ids)), rows=len(ids))

    def eval(self) -> "OpenClipModel":
        """The model; it has no other mode."""
        return self

    def to(self, device: Any) -> "OpenClipModel":
        """The model with results on another device of torch.

        Raises:
            ConfigError: a dtype; embeddings are float32.
        """
        if isinstance(device, _torch().dtype) and device != _torch().float32:
            raise ConfigError(f"to({device}): embeddings are float32; convert the results")
        return self if isinstance(device, _torch().dtype) else OpenClipModel(loaded=self.loaded, device=str(device))

    def half(self) -> "OpenClipModel":
        """Refuse, because embeddings are float32. Raises ConfigError."""
        return self.to(_torch().float16)

    def float(self) -> "OpenClipModel":
        """The model; embeddings are float32."""
        return self

    def _tensor(self, embeddings: jax.Array, *, rows: int) -> Any:
        return _torch().from_numpy(np.array(local_rows(embeddings, rows=rows))).to(self.device)


@dataclass(frozen=True, kw_only=True)
class OpenClipTransform:
    """Pillow images to uint8[3, height, width] as the model was evaluated with; normalization is in the model.

    It holds no arrays of JAX, so that worker processes of a data loader can have it.

    Attributes:
        preprocess: the image preparation of the model folder.
    """

    preprocess: Preprocess

    def __call__(self, image: Any) -> Any:
        """Prepare one image. Raises DataError for one that is damaged."""
        return _torch().from_numpy(np.ascontiguousarray(self.preprocess.pixels(image).transpose(2, 0, 1)))


@dataclass(frozen=True, kw_only=True)
class OpenClipTokenizer:
    """Texts to ids int64[texts, length], tokenized as for scoring.

    Attributes:
        loaded: the model folder.
    """

    loaded: LoadedModel

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Any:
        """Tokenize one text or several.

        Args:
            texts: the texts.
            context_length: must be that of the text tower, if it is given.

        Raises:
            ConfigError: another length was asked for.
        """
        length = self.loaded.model.config.text.length
        if context_length not in (None, length):
            raise ConfigError(f"context_length is {context_length}; this model has texts of {length} tokens")
        listed = [texts] if isinstance(texts, str) else list(texts)
        reduction = prompt_reduction(self.loaded.provenance.text_reduction)
        ids = self.loaded.tokenizer.tokenizer(listed, length=length, reduction=reduction).ids
        return _torch().from_numpy(ids.astype(np.int64))


def load_open_clip_interface(
    folder: Path | str, *, device: str = "cpu"
) -> tuple[OpenClipModel, OpenClipTransform, OpenClipTokenizer]:
    """The model, transform and tokenizer of a model folder, in the order of clip_benchmark's loaders.

    Raises:
        CheckpointError: the folder holds no model, or it is damaged.
        ConversionError: torch is not installed.
    """
    _torch()
    loaded = load_model(folder)
    return (
        OpenClipModel(loaded=loaded, device=device),
        OpenClipTransform(preprocess=loaded.preprocess),
        OpenClipTokenizer(loaded=loaded),
    )


def _padded(rows: np.ndarray) -> np.ndarray:
    """The rows with zeros up to a power of two, so that the last batch of a set compiles little."""
    size = 1 << max(len(rows) - 1, 0).bit_length()
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise ConversionError(f"this interface needs torch: {pip_install('torch')}") from error
