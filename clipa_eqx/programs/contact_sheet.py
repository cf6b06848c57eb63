"""A contact sheet of training samples: the image that the model sees, the captions, and the tokens as text again."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from clipa_eqx.data.load_batch import OnBadRecord
from clipa_eqx.data.mixture import Mixture
from clipa_eqx.data.transforms import TrainTransform
from clipa_eqx.errors import ConfigError
from clipa_eqx.replacing import new_file
from clipa_eqx.reports.samples import Sample, read_samples

GAP = 10
"""Pixels between two cells, and around all of them."""

BACKGROUND = (242, 243, 245)

_USUAL_SIDE, _LARGEST_SIDE, _NARROWEST = 192, 256, 128
"""Pixels: images are enlarged to about the first, shrunk to the second, and a cell is at least as wide as the third."""

_MOST_COLUMNS = 6
_LINE, _FONT = 14, 11
_CAPTION_LINES, _TOKEN_LINES = 4, 3


def write_sheet(
    path: Path,
    mixture: Mixture,
    transform: TrainTransform,
    *,
    samples: int,
    seed: int,
    on_bad_record: OnBadRecord = "error",
) -> None:
    """Draw the first samples that training with this seed sees.

    Images are enlarged by repeating pixels, or shrunk. A row of cells is as high as its texts need. A labeled record
    without captions is shown with its class name.

    Args:
        path: file to write; the format follows its ending: ``.png``, ``.jpg``, ``.jpeg`` or ``.webp``.
        samples: how many.
        on_bad_record: "substitute" logs a damaged record and draws another.

    Raises:
        ConfigError: the file's ending or ``samples`` is wrong, or the file cannot be written.
        DataError: a record is damaged.
    """
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ConfigError(f"--sheet is {path}; give a name that ends in .png, .jpg or .webp")
    if samples < 1:
        raise ConfigError(f"--samples is {samples}; it must be at least 1")
    shown = read_samples(mixture, transform, samples=samples, seed=seed, on_bad_record=on_bad_record)
    _save(draw_sheet(shown), path)


def columns(samples: int) -> int:
    """The number of columns, at most 6, that leaves the fewest places of the last row empty.

    >>> [columns(n) for n in (1, 2, 7, 8, 24, 25)]
    [1, 2, 4, 4, 6, 5]
    """
    if samples <= _MOST_COLUMNS:
        return samples
    return min(range(_MOST_COLUMNS, _MOST_COLUMNS // 2, -1), key=lambda across: -samples % across)


def draw_sheet(samples: Sequence[Sample]) -> Image.Image:
    """The sheet of at least one sample."""
    images = [_resized(sample.image) for sample in samples]
    across, font = columns(len(samples)), ImageFont.load_default(_FONT)
    width = max(_NARROWEST, *(image.width for image in images))
    texts = [_lines(sample, font, width) for sample in samples]
    starts = range(0, len(samples), across)
    heights = [
        max(image.height for image in images[start : start + across])
        + _LINE * max(len(lines) for lines in texts[start : start + across])
        for start in starts
    ]
    sheet = Image.new("RGB", (GAP + across * (width + GAP), GAP + sum(heights) + GAP * len(heights)), BACKGROUND)
    draw, y = ImageDraw.Draw(sheet), GAP
    for start, height in zip(starts, heights, strict=True):
        for column, (image, lines) in enumerate(zip(images[start:][:across], texts[start:], strict=False)):
            x = GAP + column * (width + GAP)
            sheet.paste(image, (x, y))
            for number, (line, color) in enumerate(lines):
                draw.text((x, y + image.height + 2 + number * _LINE), line, fill=color, font=font)
        y += height + GAP
    return sheet


def _resized(image: UInt8[np.ndarray, "height width 3"]) -> Image.Image:
    height, width = image.shape[:2]
    factor = max(1, round(_USUAL_SIDE / max(height, width)))
    shown = Image.fromarray(np.ascontiguousarray(image)).resize(
        (width * factor, height * factor), Image.Resampling.NEAREST
    )
    shown.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return shown


def _lines(sample: Sample, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[tuple[str, str]]:
    """The lines of text below an image, each with its color."""
    parts = (
        (sample.title, 1, "#6e7781"),
        (sample.caption, _CAPTION_LINES, "#000000"),
        (sample.tokens, _TOKEN_LINES, "#0050a0"),
    )
    return [(line, color) for text, count, color in parts for line in _wrapped(text, font, width, lines=count)]


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, *, lines: int) -> list[str]:
    """A text in lines of at most ``width`` pixels; what does not fit into so many lines is left out."""
    characters = min(len(text), width // 2)  # no letter is narrower than 2 pixels
    while True:
        wrapped = textwrap.wrap(text, width=max(characters, 5), max_lines=lines, placeholder=" ...")
        if characters <= 5 or all(font.getlength(line) <= width for line in wrapped):
            return wrapped
        characters = min(characters - 1, max(map(len, wrapped)) - 1)


def _save(sheet: Image.Image, path: Path) -> None:
    try:
        with new_file(path) as temporary:
            sheet.save(temporary, Image.registered_extensions()[path.suffix.lower()])
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"the sheet {path} cannot be written ({reason}); name another file with --sheet") from error
