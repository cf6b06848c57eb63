"""The fixed pictures and texts of a comparison: for the towers, on disk, and as another program took them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from clipa_eqx.data.images.host_pixels import normalize_on_host
from clipa_eqx.data.images.resize import resize
from clipa_eqx.errors import ConversionError
from conversion.compare.replay import Array, patches_of
from conversion.compare.texts import FIXED_TEXTS
from conversion.compare.walk import Side, Tower
from conversion.flax_clipa.npz import NpzFile
from conversion.open_clip.pixels import Picture, fixed_pictures

_TOWER_TEXTS = 3


def tower_inputs(a: Side, b: Side, tower: Tower) -> Array:
    """One picture as patches, or a few texts as ids: as A prepares them, else as B does, else plainly."""
    config = a.config
    if tower == "image":
        picture = fixed_pictures(config.image.image_size)[0]
        prepare = a.picture or b.picture or _plain(config.image.image_size)
        return patches_of(prepare(picture)[None], config.image)
    length, vocab = config.text.length, min(a.config.text.vocab, b.config.text.vocab)
    tokenize = a.tokenize or b.tokenize
    if tokenize is not None:
        ids = np.asarray(tokenize(list(FIXED_TEXTS)))[:_TOWER_TEXTS]
        if ids.shape[1] == length and ids.max() < vocab:
            return ids.astype(np.float64)
    fixed = (np.arange(_TOWER_TEXTS * length) * 7919 + 101) % vocab
    return fixed.reshape(_TOWER_TEXTS, length).astype(np.float64)


def write_inputs(folder: Path, side: Side) -> None:
    """``picture_0.png``, ... and ``texts.json``, for a program of your own.

    Raises:
        ConversionError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(fixed_pictures(side.config.image.image_size)):
            Image.fromarray(picture).save(folder / f"picture_{i}.png")
        (folder / "texts.json").write_text(json.dumps(list(FIXED_TEXTS), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConversionError(f"{folder} cannot be written ({error})") from error


def recorded(side: Side, file: Path) -> Side:
    """The side with the tokens and pixels of a recording in place of its own.

    Raises:
        ConversionError: the file cannot be read, or holds something else.
    """
    try:
        with NpzFile(file) as archive:
            arrays = {name: archive.read(name) for name in archive.tensors}
    except ConversionError as error:
        raise ConversionError(f"the recording {file}: {error}") from error
    height, width = side.config.image.image_size
    pictures = fixed_pictures((height, width))
    tokens, pixels = arrays.pop("tokens", None), [arrays.pop(f"pixels_{i}", None) for i in range(len(pictures))]
    if arrays or (tokens is None and not any(one is not None for one in pixels)):
        raise ConversionError(
            f"{file} holds {', '.join(arrays) or 'nothing'}; expected tokens, pixels_0, pixels_1, ..."
        )
    if tokens is not None:
        ids = tokens
        if ids.ndim != 2 or len(ids) != len(FIXED_TEXTS) or ids.dtype.kind not in "iu":
            raise ConversionError(
                f"{file}: tokens are {ids.dtype}{ids.shape}, expected whole numbers ({len(FIXED_TEXTS)}, n)"
            )
        side = replace(side, tokenize=lambda _: ids)
    found = [one for one in pixels if one is not None]
    if not found:
        return side
    if len(found) < len(pictures) or any(one.shape != (height, width, 3) or one.dtype.kind != "f" for one in found):
        raise ConversionError(
            f"{file}: expected pixels_0 to pixels_{len(pictures) - 1}, each of floats ({height}, {width}, 3)"
        )
    broken = [f"pixels_{i}" for i, one in enumerate(found) if not np.isfinite(one).all()]
    if broken:
        raise ConversionError(f"{file}: {', '.join(broken)} hold values that are not finite; look at what made them")

    def prepare(picture: Picture) -> np.ndarray:
        return next(one for known, one in zip(pictures, found, strict=True) if np.array_equal(known, picture))

    return replace(side, picture=prepare)


def _plain(size: tuple[int, int]) -> Callable[[Picture], np.ndarray]:
    return lambda picture: normalize_on_host(resize(picture, size=size))
