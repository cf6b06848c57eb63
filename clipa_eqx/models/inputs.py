"""Checks of what a user passes to the towers: shapes and dtypes always, values only of arrays that exist already.

Under ``jax.jit`` and ``jax.vmap`` values are not known yet. The checks then run while the function is traced and cost
nothing in the compiled program.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from clipa_eqx.errors import ConfigError


def check_tokens(tokens: Any, *, length: int, vocab: int) -> None:
    """Check the token ids of one text.

    Raises:
        ConfigError: not integer[length]; or, outside of ``jit`` and ``vmap``, an id that the token table does not have.
    """
    shape = np.shape(tokens)
    if len(shape) == 2 and shape[1] == length:
        raise ConfigError(
            f"the text tower encodes one text, int[{length}], got {shape[0]} of them, {_named(tokens)}: map it over "
            "the batch, jax.vmap(model.encode_text)(tokens)"
        )
    if len(shape) != 1:
        raise ConfigError(
            f"the text tower encodes one text, int[{length}], got {_named(tokens)}; for a batch int[texts, {length}], "
            "use jax.vmap(model.encode_text)(tokens)"
        )
    if shape != (length,):
        raise ConfigError(
            f"the text tower takes {length} tokens, got {shape[0]}; tokenize to that length, or "
            "resize the model with clipa_eqx.surgery.resize_text"
        )
    check_ids(tokens, vocab=vocab)


def check_ids(tokens: Any, *, vocab: int) -> None:
    """Check dtype and, outside of ``jit`` and ``vmap``, values of token ids; an indexing step would clip them silently.

    Raises:
        ConfigError: not integers, a negative id, or one that is not below ``vocab``.
    """
    if not jnp.issubdtype(_dtype(tokens), jnp.integer):
        raise ConfigError(
            f"token ids are {_dtype(tokens)}, expected integers; pass the ids of the model's tokenizer, int32"
        )
    if (values := _values(tokens)) is None or not values.size:
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= vocab:
        raise ConfigError(
            f"token ids go from {low} to {high}, but the token table has the rows 0 to {vocab - 1}; tokenize with the "
            "model's own tokenizer"
        )


def check_image(image: Any, *, size: tuple[int, int]) -> None:
    """Check one normalized image.

    Raises:
        ConfigError: not float[height, width, 3] of the model's size, such as a batch, channels first, or uint8 levels.
    """
    shape, wanted = np.shape(image), (*size, 3)
    expected = f"the image tower encodes one image, float{list(wanted)} (height, width, RGB)"
    if len(shape) == 4 and shape[1:] == wanted:
        raise ConfigError(
            f"{expected}, got {shape[0]} of them, {_named(image)}: map it over the batch, "
            "jax.vmap(model.encode_image)(images)"
        )
    if shape[-3:] == (3, *size) and size[1] != 3:
        axes = "1, 2, 0" if len(shape) == 3 else "0, 2, 3, 1"
        raise ConfigError(f"{expected}, got {_named(image)} with the channels first; use image.transpose({axes})")
    if len(shape) == 3 and shape[2] == 3 and shape != wanted:
        raise ConfigError(
            f"the image tower takes images of {size}, got {shape[:2]}; resize the images, or "
            "the model with clipa_eqx.surgery.resize_image"
        )
    if shape != wanted:
        what = " without channels" if shape == size else ""
        raise ConfigError(
            f"{expected}, got {_named(image)}{what}; prepare images with the model's preprocess, and encode a batch "
            "with jax.vmap(model.encode_image)(images)"
        )
    if not jnp.issubdtype(_dtype(image), jnp.floating):
        raise ConfigError(
            f"{expected}, got {_named(image)}: levels that are not normalized. Use the model's preprocess, or "
            "normalize_on_device(image) for uint8 levels"
        )


def check_levels(image: Any) -> None:
    """Check images before normalization.

    Raises:
        ConfigError: not uint8[..., height, width, 3].
    """
    shape = np.shape(image)
    if _dtype(image) != jnp.uint8:
        raise ConfigError(
            f"images are {_named(image)}, expected uint8 levels before normalization; pixels that are normalized "
            "already go to jax.vmap(model.encode_image)(images)"
        )
    if len(shape) < 3 or shape[-1] != 3:
        first = "; the channels are first, use a transpose" if shape[-3:-2] == (3,) else ""
        raise ConfigError(f"images are {_named(image)}, expected uint8[..., height, width, 3]{first}")


def check_image_batch(images: Any, *, size: tuple[int, int]) -> None:
    """Check a batch of images before normalization.

    Raises:
        ConfigError: not uint8[images, height, width, 3] of the model's size.
    """
    check_levels(images)
    shape = np.shape(images)
    if len(shape) != 4:
        raise ConfigError(f"images are {_named(images)}, expected a batch, uint8[images, {size[0]}, {size[1]}, 3]")
    if shape[1:3] != size:
        raise ConfigError(
            f"the image tower takes images of {size}, got {shape[1:3]}; resize the images, or "
            "the model with clipa_eqx.surgery.resize_image"
        )


def check_token_batch(tokens: Any, *, length: int, vocab: int) -> None:
    """Check the token ids of a batch of texts.

    Raises:
        ConfigError: not integer[texts, length]; or, for arrays that exist, an id that the token table does not have.
    """
    shape = np.shape(tokens)
    if len(shape) != 2:
        raise ConfigError(f"tokens are {_named(tokens)}, expected a batch, int[texts, {length}]")
    if shape[1] != length:
        raise ConfigError(
            f"the text tower takes {length} tokens, got {shape[1]}; tokenize to that length, or "
            "resize the model with clipa_eqx.surgery.resize_text"
        )
    check_ids(tokens, vocab=vocab)


def _dtype(array: Any) -> np.dtype:
    return np.dtype(array.dtype) if hasattr(array, "dtype") else np.asarray(array).dtype


def _values(array: Any) -> np.ndarray | None:
    """The values of an array on this host; None while a function is traced, and for arrays on other hosts."""
    if isinstance(array, Tracer):
        return None
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return None
    return np.asarray(array)


def _named(array: Any) -> str:
    return f"{_dtype(array).name}{list(np.shape(array))}"
