"""Fixed images and texts of a comparison: as tower inputs, as files, and as recorded by another program."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from clipa_eqx.data.images.host_pixels import normalize_on_host
from clipa_eqx.data.images.resize import resize
from clipa_eqx.errors import ConversionError
from conversion.compare.replay import Float64Array, patches_of
from conversion.compare.side import Side, Tower
from conversion.flax_clipa.npz import NpzFile
from conversion.open_clip.pixels import RgbImage, fixed_images

FIXED_TEXTS: tuple[str, ...] = (
    "a photo of a dog",
    "A close-up photo of a T-shirt, with café crème!",
    "",
    "an extremely long caption of more pieces than any model takes: " + "one two three four five six seven eight " * 12,
    "Straße ﬁne ½ cup … Acme™ １２３ Ⅷ",  # decomposed or folded differently by different libraries
    "你好 world",
)

_TOWER_TEXTS = 3


def tower_inputs(a: Side, b: Side, tower: Tower) -> Float64Array:
    """One image as patches (1, patches, pixels), or a few texts as ids (texts, length).

    They are prepared as A does; else as B does; else by a plain resize, or as arbitrary ids.
    """
    config = a.config
    if tower == "image":
        image = fixed_images(config.image.image_size)[0]
        prepare = a.prepare or b.prepare or _plain(config.image.image_size)
        return patches_of(prepare(image)[None], config.image)
    length, vocab = config.text.length, min(a.config.text.vocab, b.config.text.vocab)
    tokenize = a.tokenize or b.tokenize
    if tokenize is not None:
        ids = np.asarray(tokenize(list(FIXED_TEXTS)))[:_TOWER_TEXTS]
        if ids.shape[1] == length and ids.max() < vocab:
            return ids.astype(np.float64)
    fixed = (np.arange(_TOWER_TEXTS * length) * 7919 + 101) % vocab
    return fixed.reshape(_TOWER_TEXTS, length).astype(np.float64)


def write_inputs(folder: Path, side: Side) -> None:
    """Write ``image_0.png``, ... and ``texts.json``, for another program.

    Raises:
        ConversionError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(fixed_images(side.config.image.image_size)):
            Image.fromarray(image).save(folder / f"image_{i}.png")
        (folder / "texts.json").write_text(json.dumps(list(FIXED_TEXTS), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConversionError(f"{folder} cannot be written ({error})") from error


def recorded(side: Side, file: Path) -> Side:
    """The side with the tokens and pixels of a recording in place of its own.

    Raises:
        ConversionError: the file cannot be read, or holds other arrays.
    """
    try:
        with NpzFile(file) as archive:
            arrays = {name: archive.read(name) for name in archive.tensors}
    except ConversionError as error:
        raise ConversionError(f"the recording {file}: {error}") from error
    size = side.config.image.image_size
    images = fixed_images(size)
    tokens, pixels = arrays.pop("tokens", None), [arrays.pop(f"pixels_{i}", None) for i in range(len(images))]
    if arrays or (tokens is None and not any(one is not None for one in pixels)):
        raise ConversionError(
            f"{file} holds {', '.join(arrays) or 'nothing'}; expected tokens, pixels_0, pixels_1, ..."
        )
    if tokens is not None:
        side = replace(side, tokenize=_recorded_tokens(tokens, file))
    found = [one for one in pixels if one is not None]
    return replace(side, prepare=_recorded_pixels(images, found, size, file)) if found else side


def _recorded_tokens(ids: np.ndarray, file: Path) -> Callable[[list[str]], np.ndarray]:
    if ids.ndim != 2 or len(ids) != len(FIXED_TEXTS) or ids.dtype.kind not in "iu":
        raise ConversionError(
            f"{file}: tokens are {ids.dtype}{ids.shape}, expected whole numbers ({len(FIXED_TEXTS)}, n)"
        )
    return lambda _: ids


def _recorded_pixels(
    images: list[np.ndarray], pixels: list[np.ndarray], size: tuple[int, int], file: Path
) -> Callable[[RgbImage], np.ndarray]:
    if len(pixels) < len(images) or any(one.shape != (*size, 3) or one.dtype.kind != "f" for one in pixels):
        raise ConversionError(
            f"{file}: expected pixels_0 to pixels_{len(images) - 1}, each of floats ({size[0]}, {size[1]}, 3)"
        )
    broken = [f"pixels_{i}" for i, one in enumerate(pixels) if not np.isfinite(one).all()]
    if broken:
        raise ConversionError(f"{file}: {', '.join(broken)} hold non-finite values; check the program that wrote them")

    def prepare(image: RgbImage) -> np.ndarray:
        return next(one for known, one in zip(images, pixels, strict=True) if np.array_equal(known, image))

    return prepare


def _plain(size: tuple[int, int]) -> Callable[[RgbImage], np.ndarray]:
    return lambda image: normalize_on_host(resize(image, size=size))
