"""A model with all that turns files and texts into unit vectors, and its fingerprint."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int32, UInt8

from clipa_eqx.data.images.evaluation import EvalImageConfig, eval_image
from clipa_eqx.errors import ConfigError, DataError, NonFiniteError
from clipa_eqx.evals.encode import encode_images, encode_texts, local_rows
from clipa_eqx.evals.prompts import PromptReduction
from clipa_eqx.json_config import to_json
from clipa_eqx.models.clip import CLIP
from clipa_eqx.search.inputs import Item
from clipa_eqx.tokenizer.wordpiece import Tokenizer

_MOST_THREADS = 32


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A model on its devices with its preparation of images and texts.

    Attributes:
        model: both towers.
        tokenizer: tokenizer of any length.
        preprocess: how images are decoded and resized.
        text_reduction: how texts longer than the text tower are cut.
        weights_sha256: one hash of all leaves.
        path: the model or run folder, to find it again.
        mesh: the devices that the model is on; None for a single one.
    """

    model: CLIP
    tokenizer: Tokenizer
    preprocess: EvalImageConfig
    text_reduction: PromptReduction
    weights_sha256: str
    path: str
    mesh: Mesh | None = None

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that determines the vectors, up to rounding between devices, as JSON."""
        config: Any = to_json(self.model.config)
        return {
            "weights_sha256": self.weights_sha256,
            "config": config,
            "dtype": str(self.model.log_temperature.dtype),
            "vocab_sha256": self.tokenizer.vocab_sha256,
            "preprocess": to_json(self.preprocess),
            "text_reduction": self.text_reduction,
        }

    @property
    def width(self) -> int:
        """Length of the vectors."""
        return self.model.config.image.output

    @property
    def identity(self) -> "EncoderIdentity":
        """The part of the description of its vectors that is about it."""
        return EncoderIdentity(width=self.width, path=self.path, fingerprint=self.fingerprint)


@dataclass(frozen=True, kw_only=True)
class EncoderIdentity:
    """The facts about an encoder that a description of its vectors has. Without the model, another process has them.

    Attributes:
        width: length of the vectors.
        path: the model or run folder.
        fingerprint: all that determines the vectors, as JSON.
    """

    width: int
    path: str
    fingerprint: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Embeddings of some items.

    Attributes:
        items: those with a vector, in order.
        vectors: unit vectors of ``items``.
        unreadable: items whose content is the error that says why they have no vector.
        truncated: texts that are longer than the text tower.
    """

    items: Sequence[Item]
    vectors: Float32[np.ndarray, "items embed"]
    unreadable: Sequence[Item]
    truncated: int


def encode_items(encoder: Encoder, items: Iterator[Item], *, batch_size: int, is_images: bool) -> Iterator[Chunk]:
    """Embeddings of items in order, ``batch_size`` items at once; the devices work while the next ones are prepared.

    A batch always has the same shape, and an unreadable item is zeros in it, so that no vector depends on other items.

    Args:
        batch_size: items at once over all devices of the encoder.

    Raises:
        ConfigError: ``batch_size`` below 1, or too large for the memory of the devices.
        NonFiniteError: a vector is NaN or infinite.
    """
    if batch_size < 1:
        raise ConfigError(f"the batch size is {batch_size}; it must be at least 1")
    prepare = partial(_image_rows, encoder) if is_images else partial(_text_rows, encoder)
    encode = encode_images if is_images else encode_texts
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        former: tuple[Sequence[Item], Sequence[DataError | None], int, jax.Array] | None = None
        while batch := list(islice(items, batch_size)):
            rows, errors, truncated = prepare(batch, batch_size, pool)
            started = encode(encoder.model, rows, mesh=encoder.mesh)
            if former is not None:
                yield _read(*former)
            former = (batch, errors, truncated, started)
        if former is not None:
            yield _read(*former)


def check_same_model(
    recorded: Mapping[str, Any], encoder: Encoder, *, where: str, hint: str, adds: bool = False
) -> None:
    """Check that vectors of a recorded fingerprint and of this encoder can be compared.

    Args:
        adds: images are added to the recorded ones, so they must be prepared in the same way too.

    Raises:
        ConfigError: the weights, the architecture or the preparation of images differ.
    """
    own = encoder.fingerprint
    names = ("weights_sha256", "config", "vocab_sha256", *(("preprocess",) if adds else ()))
    differing = [name for name in names if recorded.get(name) != own[name]]
    if differing:
        raise ConfigError(f"{where} was made with another model ({', '.join(differing)} differ); {hint}")


def _read(batch: Sequence[Item], errors: Sequence[DataError | None], truncated: int, encoded: jax.Array) -> Chunk:
    vectors = local_rows(encoded, rows=len(batch))
    has_vector = np.array([error is None for error in errors])
    if not np.isfinite(vectors[has_vector]).all():
        bad = next(item for item, row, ok in zip(batch, vectors, has_vector, strict=True) if ok and not _finite(row))
        raise NonFiniteError(f"the embedding of {bad.id} is not finite; the weights of the model are damaged")
    return Chunk(
        items=[item for item, error in zip(batch, errors, strict=True) if error is None],
        vectors=vectors[has_vector],
        unreadable=[
            item._replace(content=error) for item, error in zip(batch, errors, strict=True) if error is not None
        ],
        truncated=truncated,
    )


def _finite(row: np.ndarray) -> bool:
    return bool(np.isfinite(row).all())


def _image_rows(
    encoder: Encoder, batch: Sequence[Item], size: int, pool: ThreadPoolExecutor
) -> tuple[UInt8[np.ndarray, "size height width 3"], Sequence[DataError | None], int]:
    rows = np.zeros((size, *encoder.preprocess.size, 3), np.uint8)
    found = list(pool.map(partial(_pixels, config=encoder.preprocess), batch))
    errors: list[DataError | None] = []
    for row, pixels in zip(rows, found, strict=False):
        if isinstance(pixels, DataError):
            errors.append(pixels)
        else:
            row[:] = pixels
            errors.append(None)
    return rows, errors, 0


def _pixels(item: Item, config: EvalImageConfig) -> UInt8[np.ndarray, "height width 3"] | DataError:
    try:
        match item.content:
            case Path():
                return eval_image(item.content.read_bytes(), config)
            case bytes():
                return eval_image(item.content, config)
            case DataError():
                return item.content
            case str():
                raise TypeError("a text is no image")
    except OSError as error:
        return DataError(f"cannot be read ({error.strerror})")
    except DataError as error:
        return error


def _text_rows(
    encoder: Encoder, batch: Sequence[Item], size: int, pool: ThreadPoolExecutor
) -> tuple[Int32[np.ndarray, "size length"], Sequence[DataError | None], int]:
    texts = [item.content if isinstance(item.content, str) else "" for item in batch]
    tokens = encoder.tokenizer(texts, length=encoder.model.config.text.length, reduction=encoder.text_reduction)
    rows = np.zeros((size, tokens.ids.shape[1]), np.int32)
    rows[: len(batch)] = tokens.ids
    errors = [item.content if isinstance(item.content, DataError) else None for item in batch]
    return rows, errors, tokens.truncated
