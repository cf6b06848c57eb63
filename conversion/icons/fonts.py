"""Icons of the fonts in the ``qtawesome`` wheel: their names, their pixels, and which ones look alike."""

import importlib.util
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from clipa_eqx.errors import DataError, pip_install

Split = Literal["train", "validation", "held-out"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One font of the wheel.

    Attributes:
        name: name of the family here.
        stem: start of the names of its two files.
        split: record folder that its icons are for.
        style: style of a name without a suffix.
        suffixes: words at the end of a name that do not describe the subject, each with its style ("": none).
    """

    name: str
    stem: str
    split: Split
    style: Literal["fill", "line"]
    suffixes: dict[str, str]


# All editions and styles of Font Awesome are held out, so that no relative of a scored icon is trained on. Only the
# solid style of edition 6 is scored. Codicon and Elusive are for choosing hyper-parameters and not trained on either.
# Material Design comes in two editions; edition 6 contains edition 5.
FAMILIES: tuple[Family, ...] = (
    Family(
        name="material-design-6",
        stem="materialdesignicons6-webfont",
        split="train",
        style="fill",
        suffixes={"outline": "line", "variant": ""},
    ),
    Family(
        name="phosphor",
        stem="phosphor",
        split="train",
        style="line",
        suffixes={"fill": "fill", "bold": "line bold", "light": "line light", "thin": "line thin"},
    ),
    Family(name="remix", stem="remixicon", split="train", style="fill", suffixes={"fill": "fill", "line": "line"}),
    Family(
        name="codicon",
        stem="codicon",
        split="validation",
        style="line",
        suffixes={"filled": "fill", "outline": "line"},
    ),
    Family(name="elusive", stem="elusiveicons-webfont", split="validation", style="fill", suffixes={"alt": ""}),
    Family(name="font-awesome-6-solid", stem="fontawesome6-solid-webfont", split="held-out", style="fill", suffixes={}),
    Family(
        name="font-awesome-6-regular", stem="fontawesome6-regular-webfont", split="held-out", style="line", suffixes={}
    ),
    Family(
        name="font-awesome-6-brands", stem="fontawesome6-brands-webfont", split="held-out", style="fill", suffixes={}
    ),
    Family(name="font-awesome-5-solid", stem="fontawesome5-solid-webfont", split="held-out", style="fill", suffixes={}),
    Family(
        name="font-awesome-5-regular", stem="fontawesome5-regular-webfont", split="held-out", style="line", suffixes={}
    ),
    Family(
        name="font-awesome-5-brands", stem="fontawesome5-brands-webfont", split="held-out", style="fill", suffixes={}
    ),
)
SCORED_FAMILY = "font-awesome-6-solid"

# Two icons are twins if the Tanimoto coefficient of their ink is at least this (cosine 0.95). By eye, pairs at 0.9 to
# 0.95 are independent icons of the same simple shape, and pairs below 0.85 show different things.
TWIN_SIMILARITY = 0.9

_TWIN_SIDE = 26
_FONT_PIXELS = 128


@dataclass(frozen=True, kw_only=True)
class Icon:
    """One glyph: its family, all its names in that font (the first one is used), and its Unicode code point."""

    family: Family
    names: tuple[str, ...]
    codepoint: int

    @property
    def key(self) -> str:
        """``family/name``, unique among all icons."""
        return f"{self.family.name}/{self.names[0]}"


def fonts_folder() -> Path:
    """The folder of fonts in the ``qtawesome`` package, found without importing it (an import would need Qt).

    Raises:
        DataError: the package is not installed.
    """
    spec = importlib.util.find_spec("qtawesome")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the icon fonts of the package qtawesome are missing: {pip_install('qtawesome')}")
    return Path(spec.submodule_search_locations[0]) / "fonts"


def list_icons(family: Family, *, folder: Path | None = None) -> list[Icon]:
    """The glyphs in the character map of a family, in its order; several names of a glyph make one icon.

    Raises:
        DataError: the folder does not hold exactly one character map of the family.
    """
    charmap = _one_file(folder or fonts_folder(), f"{family.stem}-charmap-*.json")
    names: dict[int, list[str]] = {}
    for name, codepoint in json.loads(charmap.read_text(encoding="utf-8")).items():
        names.setdefault(int(codepoint, 16), []).append(name)
    return [Icon(family=family, names=tuple(known), codepoint=code) for code, known in names.items()]


def split_name(name: str, family: Family) -> tuple[tuple[str, ...], str]:
    """The words for the subject, and the style: ``("star", "half"), "line"`` for ``star-half-outline``.

    A name that consists of suffixes only keeps its first word. Words are lower case; hyphens, underscores, dots and
    capitals in lowerCamelCase separate them.
    """
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)]
    style = ""
    while len(words) > 1 and words[-1] in family.suffixes:
        last = words.pop()
        style = style or family.suffixes[last]
    return tuple(words), style or family.style


def name_key(name: str, family: Family) -> str:
    """The key under which names of two families mean the same: their words in alphabetical order, without style."""
    return " ".join(sorted(set(split_name(name, family)[0])))


def render(
    icons: Sequence[Icon], *, size: int = 64, folder: Path | None = None
) -> list[UInt8[np.ndarray, "size size"]]:
    """Ink of each icon (0 paper, 255 ink), centered, its longer side 13/16 of ``size``; zeros if a glyph is empty.

    Fonts differ in the margin around a glyph, so the margin is cut.

    Args:
        size: pixels of a side, a multiple of 32, so that twins are compared on whole pixels.

    Raises:
        DataError: another size, or the icons are of several families.
    """
    if size % 32:
        raise DataError(f"icons are rendered at multiples of 32 pixels, got size={size}")
    if not icons:
        return []
    family = icons[0].family
    if any(icon.family != family for icon in icons):
        raise DataError("render takes the icons of one family at a time")
    font = ImageFont.truetype(
        str(_one_file(folder or fonts_folder(), f"{family.stem}-*.ttf")),
        _FONT_PIXELS,
        layout_engine=ImageFont.Layout.BASIC,  # the other engine is not in every build of Pillow
    )
    return [_render_one(font, chr(icon.codepoint), size) for icon in icons]


def similarity(
    left: Sequence[UInt8[np.ndarray, "size size"]], right: Sequence[UInt8[np.ndarray, "size size"]]
) -> Float[np.ndarray, "left right"]:
    """Tanimoto coefficients of ink, ``ab / (aa + bb - ab)``, after reduction to 26 x 26 pixels.

    1 means equal pixels, 0 no common ink. For icons in pure black and white it is intersection over union.
    """
    a, b = _reduced(left), _reduced(right)
    common = a @ b.T
    union = np.sum(a * a, axis=1)[:, None] + np.sum(b * b, axis=1)[None, :] - common
    return common / np.maximum(union, np.float32(1e-6))


def shared_names(scored: Collection[Icon], trained: Collection[Icon]) -> dict[str, str]:
    """The classes: ``name_key`` -> class name, for every key that scored and trained icons share, sorted by key.

    The class name is the most frequent wording of the training families (ties: the first in alphabetical order).
    """
    wordings: dict[str, dict[str, int]] = {}
    for icon in trained:
        for name in icon.names:
            words = " ".join(split_name(name, icon.family)[0])
            counts = wordings.setdefault(name_key(name, icon.family), {})
            counts[words] = counts.get(words, 0) + 1
    keys = {name_key(name, icon.family) for icon in scored for name in icon.names}
    return {key: min(wordings[key], key=lambda w: (-wordings[key][w], w)) for key in sorted(keys & wordings.keys())}


def _one_file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise DataError(f"{folder}: expected exactly one file {pattern}, got {[path.name for path in found]}")
    return found[0]


def _render_one(font: ImageFont.FreeTypeFont, character: str, size: int) -> UInt8[np.ndarray, "size size"]:
    left, top, right, bottom = font.getbbox(character)
    sheet = Image.new("L", (max(int(right - left), 1), max(int(bottom - top), 1)))
    ImageDraw.Draw(sheet).text((-left, -top), character, font=font, fill=255)
    out = Image.new("L", (size, size))
    box = sheet.getbbox()
    if box is not None:
        ink = sheet.crop(box)
        scale = size * 13 / 16 / max(ink.size)
        width, height = (max(1, round(side * scale)) for side in ink.size)
        ink = ink.resize((width, height), Image.Resampling.BOX)
        out.paste(ink, ((size - width) // 2, (size - height) // 2))
    return np.asarray(out)


def _reduced(icons: Sequence[UInt8[np.ndarray, "size size"]]) -> Float[np.ndarray, "count pixels"]:
    if not icons:
        return np.zeros((0, _TWIN_SIDE**2), np.float32)
    size = icons[0].shape[0]
    blank, step = size * 3 // 32, size // 32
    inner = np.stack(icons)[:, blank : size - blank, blank : size - blank].astype(np.float32) / 255
    cells = inner.reshape(-1, _TWIN_SIDE, step, _TWIN_SIDE, step).mean(axis=(2, 4))
    return cells.reshape(len(icons), -1)
