"""Another text length or image size, and learned image positions."""

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from clipa_eqx.models.clip import CLIP
from clipa_eqx.models.embed import sincos_2d
from clipa_eqx.surgery.configuration import operated, rebuild
from clipa_eqx.surgery.report import Move, Operated
from clipa_eqx.trees import leaves_by_path

TextRows = Literal["resample", "first"]
"""Ways to make the rows of learned text positions for another length; ``resize_text`` describes them."""


def resize_text(model: CLIP, *, length: int, rows: TextRows = "resample") -> Operated:
    """Change the text length to ``length`` tokens.

    Sin-cos positions are computed for the new size. Learned ones follow ``rows``. "resample" is linear between token
    centers, antialiased when shrinking, as in ``merge_params`` of the reference (``jax.image.resize``;
    docs/reference.md F3.1). "first" keeps the rows in front, so that each word of a text keeps its position; rows
    beyond the old length are copies of the last one.

    Raises:
        ConfigError: a length that the tower cannot have.
    """
    before = model.config.text.length
    config = dataclasses.replace(model.config, text=dataclasses.replace(model.config.text, length=length))
    if length == before:
        return operated(model, model, ())
    leaves, changes, moves = leaves_by_path(model), [f"text.length: {before} -> {length}"], dict[str, Move]()
    if model.text.position is not None:
        if rows == "first":
            moves["text/position"] = lambda table: table[np.minimum(np.arange(length), before - 1)]
            changes.append(f"text/position: first {min(before, length)} of {before} rows kept, {length} in all")
        else:
            moves["text/position"] = partial(_resample_rows, length=length)
            changes.append(f"text/position: {before} rows resampled to {length}")
        leaves["text/position"] = moves["text/position"](model.text.position)
    return operated(model, rebuild(config, leaves), changes, moves=moves)


def resize_image(model: CLIP, *, image_size: tuple[int, int]) -> Operated:
    """Change the image size to (height, width) in pixels.

    Sin-cos positions are computed for the new size; learned ones are resampled. The class token's row is kept. The
    other rows are resampled as a 2-D grid, bilinear, and antialiased when shrinking. The reference resamples all rows
    as one line, the class token included (docs/reference.md D8).

    Raises:
        ConfigError: the patches do not divide the size.
    """
    old = model.config.image
    image = dataclasses.replace(old, image_size=image_size)
    if image_size == old.image_size:
        return operated(model, model, ())
    leaves, moves = leaves_by_path(model), dict[str, Move]()
    changes = [f"image.image_size: {old.image_size} -> {image_size}"]
    if model.image.position is not None and image.grid != old.grid:
        moves["image/position"] = partial(resample_grid, old=old.grid, new=image.grid)
        leaves["image/position"] = moves["image/position"](model.image.position)
        changes.append(f"image/position: class token's row kept, grid {old.grid} resampled to {image.grid}")
    config = dataclasses.replace(model.config, image=image)
    return operated(model, rebuild(config, leaves), changes, moves=moves)


def learn_image_position(model: CLIP) -> Operated:
    """Turn computed image positions into a leaf that training can change; the model's outputs stay the same."""
    image = model.config.image
    if image.position == "learned":
        return operated(model, model, ())
    table = sincos_2d(*image.grid, image.blocks.width)
    leaves = leaves_by_path(model) | {"image/position": jnp.asarray(np.concatenate([np.zeros_like(table[:1]), table]))}
    config = dataclasses.replace(model.config, image=dataclasses.replace(image, position="learned"))
    change = "image/position: the computed sincos2d table became a leaf"
    return operated(model, rebuild(config, leaves), (change,))


def _resample_rows(position: Float[Array, "seq dim"], *, length: int) -> Float[Array, "length dim"]:
    return jax.image.resize(position, (length, position.shape[1]), method="bilinear")


def resample_grid(
    position: Float[Array, "seq dim"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Array, "_ dim"]:
    """Keep the row of the class token, and resample the others as a grid (down, across)."""
    dim = position.shape[1]
    grid = jax.image.resize(position[1:].reshape(*old, dim), (*new, dim), method="bilinear")
    return jnp.concatenate([position[:1], grid.reshape(-1, dim)])
