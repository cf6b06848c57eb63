"""Embeddings of lists of any length: in chunks of one shape, prepared while the devices work on the chunk before."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.evals.encode import encode_images, encode_texts, local_rows
from clipa_eqx.models.clip import CLIP
from clipa_eqx.progress import progress_bar

ImageLike = Path | str | bytes | Image.Image | np.ndarray
"""An image: a path, the content of a file, a Pillow image, or an RGB array uint8[height width 3]."""

_MOST_THREADS = 8


def encode_image_list(
    model: CLIP,
    images: Any,
    *,
    prepare: Callable[[Any], UInt8[np.ndarray, "height width 3"]],
    batch_size: int,
) -> Float32[np.ndarray, "images embed"]:
    """Unit embeddings of images, in the order of the list.

    Args:
        images: a sequence of ``ImageLike``, or one array uint8[images height width 3].
        prepare: decodes and resizes one image.
        batch_size: most images at once over all devices.

    Raises:
        ConfigError: ``batch_size`` below 1.
        DataError: the argument is no list of images, or one of them cannot be read; the message names it.
    """
    listed = _as_list(images, (str, bytes, Path, Image.Image), "encode_images", "images")
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise DataError(f"encode_images takes a list of images, got an array of shape {images.shape}; put it in a list")

    def rows(numbers: range) -> UInt8[np.ndarray, "rows height width 3"]:
        def one(number: int) -> UInt8[np.ndarray, "height width 3"]:
            return _prepared(listed[number], prepare, where=f"image {number} of {len(listed)}")

        return np.stack(list(pool.map(one, numbers)))

    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        return _encode(
            lambda batch: encode_images(model, batch, mesh=_mesh_of(model)),
            rows,
            count=len(listed),
            embed=model.config.image.output,
            batch_size=batch_size,
            unit="image",
        )


def encode_text_list(
    model: CLIP,
    texts: Any,
    *,
    tokenize: Callable[[Sequence[str | bytes]], Int32[np.ndarray, "texts length"]],
    batch_size: int,
) -> Float32[np.ndarray, "texts embed"]:
    """Unit embeddings of texts, in the order of the list.

    Args:
        texts: a sequence of str or bytes.
        tokenize: texts to rows of token ids.
        batch_size: most texts at once over all devices.

    Raises:
        ConfigError: ``batch_size`` below 1.
        DataError: the argument is no list of texts; the message names the first entry that is no text.
    """
    listed = _as_list(texts, (str, bytes), "encode_texts", "texts")
    for number, text in enumerate(listed):
        if not isinstance(text, str | bytes):
            raise DataError(f"text {number} of {len(listed)} is {text!r:.60}, expected a string")
    return _encode(
        lambda batch: encode_texts(model, batch, mesh=_mesh_of(model)),
        lambda numbers: tokenize(listed[numbers.start : numbers.stop]),
        count=len(listed),
        embed=model.config.text.output,
        batch_size=batch_size,
        unit="text",
    )


def _encode(
    encode: Callable[[np.ndarray], jax.Array],
    rows: Callable[[range], np.ndarray],
    *,
    count: int,
    embed: int,
    batch_size: int,
    unit: str,
) -> Float32[np.ndarray, "rows embed"]:
    """Encode ``rows`` of all numbers below ``count``; every chunk has the same shape, the last one is padded."""
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
    # A power of two, so that few shapes are compiled and a single image is not padded to a large batch.
    size = min(batch_size, 1 << max(count - 1, 0).bit_length())
    found = np.zeros((count, embed), np.float32)
    with progress_bar(what=f"encoding {unit}s", total=count, unit=unit) as bar:
        former: tuple[range, jax.Array] | None = None
        for start in range(0, count + size, size):
            # The devices start on this chunk, and meanwhile the embeddings of the former one are read.
            chunk = range(start, min(start + size, count))
            current = (chunk, encode(_padded(rows(chunk), size))) if chunk else None
            if former is not None:
                numbers, embeddings = former
                found[numbers.start : numbers.stop] = local_rows(embeddings, rows=len(numbers))
                bar.update(len(numbers))
            former = current
    return found


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])


def _prepared(
    image: Any,
    prepare: Callable[[Any], UInt8[np.ndarray, "height width 3"]],
    *,
    where: str,
) -> UInt8[np.ndarray, "height width 3"]:
    """An image at the size of the model; the error of an image that cannot be read names it, and its path."""
    if isinstance(image, str | Path):
        where = f"{where}, {image}"
    try:
        return prepare(Path(image).read_bytes() if isinstance(image, str | Path) else image)
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror}); give the path of an image file") from error
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _as_list(entries: Any, single: tuple[type, ...], function: str, what: str) -> list[Any]:
    if isinstance(entries, single) or not isinstance(entries, Iterable):
        raise DataError(f"{function} takes a list of {what}, got {type(entries).__name__}; put it in a list")
    return list(cast("Iterable[Any]", entries))


def _mesh_of(model: CLIP) -> Mesh | None:
    """The mesh that the model was placed on; None if it is on one device."""
    sharding = next(leaf.sharding for leaf in jax.tree.leaves(model) if isinstance(leaf, jax.Array))
    return sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None
