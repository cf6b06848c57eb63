"""The drawings of the icon fonts in the `qtawesome` wheel: their names, their pixels, and who resembles whom."""

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

from clipa_eqx.errors import DataError

Part = Literal["train", "validation", "held-out"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One font of the wheel. `stem` begins its two file names; `suffixes` end a name without being part of the subject.

    `suffixes` maps such a word to the style it stands for ("" = says nothing); `style` is the style without a suffix.
    """

    name: str
    stem: str
    part: Part
    style: Literal["fill", "line"]
    suffixes: dict[str, str]


# Every edition and style of Font Awesome is held out, so that no cousin of a scored drawing is ever trained on; only
# its solid style, edition 6, is scored. Codicon and Elusive choose the hyper-parameters and are not trained on either.
# Material Design comes in two editions of which 6 contains 5.
FAMILIES: tuple[Family, ...] = (
    Family(
        name="material-design-6",
        stem="materialdesignicons6-webfont",
        part="train",
        style="fill",
        suffixes={"outline": "line", "variant": ""},
    ),
    Family(
        name="phosphor",
        stem="phosphor",
        part="train",
        style="line",
        suffixes={"fill": "fill", "bold": "line bold", "light": "line light", "thin": "line thin"},
    ),
    Family(name="remix", stem="remixicon", part="train", style="fill", suffixes={"fill": "fill", "line": "line"}),
    Family(
        name="codicon",
        stem="codicon",
        part="validation",
        style="line",
        suffixes={"filled": "fill", "outline": "line"},
    ),
    Family(name="elusive", stem="elusiveicons-webfont", part="validation", style="fill", suffixes={"alt": ""}),
    Family(name="font-awesome-6-solid", stem="fontawesome6-solid-webfont", part="held-out", style="fill", suffixes={}),
    Family(
        name="font-awesome-6-regular", stem="fontawesome6-regular-webfont", part="held-out", style="line", suffixes={}
    ),
    Family(
        name="font-awesome-6-brands", stem="fontawesome6-brands-webfont", part="held-out", style="fill", suffixes={}
    ),
    Family(name="font-awesome-5-solid", stem="fontawesome5-solid-webfont", part="held-out", style="fill", suffixes={}),
    Family(
        name="font-awesome-5-regular", stem="fontawesome5-regular-webfont", part="held-out", style="line", suffixes={}
    ),
    Family(
        name="font-awesome-5-brands", stem="fontawesome5-brands-webfont", part="held-out", style="fill", suffixes={}
    ),
)
SCORED_FAMILY = "font-awesome-6-solid"

# Ink of two drawings overlaps by at least this Tanimoto coefficient (cosine 0.95): they are twins. Looked at by eye:
# at 0.9-0.95 lie independent drawings of the same simple shape, under 0.85 the pairs show different things.
TWIN_SIMILARITY = 0.9

_TWIN_SIDE = 26
_FONT_PIXELS = 128


@dataclass(frozen=True, kw_only=True)
class Icon:
    """One glyph: its family, all its names in that font (the first is the one we use), and its Unicode codepoint."""

    family: Family
    names: tuple[str, ...]
    codepoint: int

    @property
    def key(self) -> str:
        """`family/name`, unique among all icons."""
        return f"{self.family.name}/{self.names[0]}"


def fonts_folder() -> Path:
    """The folder of fonts in the `qtawesome` package, found without importing it (an import would need Qt).

    Raises `DataError` if the package is not installed.
    """
    spec = importlib.util.find_spec("qtawesome")
    if spec is None or not spec.submodule_search_locations:
        raise DataError('the icon fonts of the package qtawesome are missing: pip install "clipa_eqx[quickstart]"')
    return Path(spec.submodule_search_locations[0]) / "fonts"


def list_icons(family: Family, *, folder: Path | None = None) -> list[Icon]:
    """Every glyph that a family's character map names, in the map's order; several names of one glyph make one icon.

    Raises `DataError` if the folder does not hold exactly one character map of the family.
    """
    charmap = _one_file(folder or fonts_folder(), f"{family.stem}-charmap-*.json")
    names: dict[int, list[str]] = {}
    for name, codepoint in json.loads(charmap.read_text(encoding="utf-8")).items():
        names.setdefault(int(codepoint, 16), []).append(name)
    return [Icon(family=family, names=tuple(known), codepoint=code) for code, known in names.items()]


def split_name(name: str, family: Family) -> tuple[tuple[str, ...], str]:
    """The words of what is drawn, and its style: `("star", "half"), "line"` for `star-half-outline`.

    A name that consists of suffixes only keeps its first word. Words are lower case; hyphens, underscores, dots and
    lowerCamel humps separate them.
    """
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)]
    style = ""
    while len(words) > 1 and words[-1] in family.suffixes:
        last = words.pop()
        style = style or family.suffixes[last]
    return tuple(words), style or family.style


def name_key(name: str, family: Family) -> str:
    """What two families must share to mean the same: the words of the name in alphabetical order, without style."""
    return " ".join(sorted(set(split_name(name, family)[0])))


def render(
    icons: Sequence[Icon], *, size: int = 64, folder: Path | None = None
) -> list[UInt8[np.ndarray, "size size"]]:
    """Ink of each icon (0 paper, 255 ink), its longer side 13/16 of `size`, centered; all zeros where a glyph is empty.

    `size` is a multiple of 32, so that twins are compared on whole pixels. Fonts differ in the blank they leave around
    a glyph, so the blank is cut. Raises `DataError` if the icons are of several families.
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
    """Tanimoto coefficients of ink, `ab / (aa + bb - ab)`, after reduction to 26x26: 1 same pixels, 0 no common ink.

    For drawings in pure black and white it is intersection over union.
    """
    a, b = _reduced(left), _reduced(right)
    common = a @ b.T
    union = np.sum(a * a, axis=1)[:, None] + np.sum(b * b, axis=1)[None, :] - common
    return common / np.maximum(union, np.float32(1e-6))


def shared_names(scored: Collection[Icon], trained: Collection[Icon]) -> dict[str, str]:
    """The classes: `name_key` -> class name, for every key that a scored icon shares with a trained one, sorted by key.

    The class name is worded as the training families word it most often (ties: the first in alphabetical order).
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


def _reduced(drawings: Sequence[UInt8[np.ndarray, "size size"]]) -> Float[np.ndarray, "count pixels"]:
    if not drawings:
        return np.zeros((0, _TWIN_SIDE**2), np.float32)
    size = drawings[0].shape[0]
    blank, step = size * 3 // 32, size // 32
    inner = np.stack(drawings)[:, blank : size - blank, blank : size - blank].astype(np.float32) / 255
    cells = inner.reshape(-1, _TWIN_SIDE, step, _TWIN_SIDE, step).mean(axis=(2, 4))
    return cells.reshape(len(drawings), -1)
