"""The results of a search as a page of its own: cards with a thumbnail or a text, from 390 pixels on."""

import base64
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps

from clipa_eqx.errors import DataError
from clipa_eqx.reports.page import page, text

_STYLE = """
.hits{display:grid;grid-template-columns:repeat(auto-fill,minmax(10rem,1fr));gap:1rem;padding:0;list-style:none}
.hits li{min-width:0;overflow-wrap:anywhere;font-size:.85rem;line-height:1.4}
.hits figure{margin:0;aspect-ratio:1;background:var(--panel);border-radius:.4rem;overflow:hidden;display:grid}
.hits img{width:100%;height:100%;object-fit:contain}.hits figure p{place-self:center;padding:.6rem;margin:0}
.hits p{margin:.3rem 0}.hits .score{font-variant-numeric:tabular-nums;color:var(--curve-1)}
.query{max-width:14rem;border-radius:.4rem;display:block;margin:.4rem 0}
"""

_LARGEST_SIDE = 320
"""Pixels of a thumbnail."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Card:
    """A result.

    Attributes:
        name: path, key or number of a line.
        score: its product with the query.
        image: reads the image file, and raises DataError or OSError; None for a text.
        words: the text.
    """

    name: str
    score: float
    image: Callable[[], bytes] | None
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class Results:
    """A query with its results, best first; a query is a text, or an image with its name."""

    query: str
    query_image: bytes | None
    cards: Sequence[Card]


def gallery(results: Sequence[Results], *, title: str, about: str) -> str:
    """The page: a section per query.

    Args:
        title: heading.
        about: what was searched, and with which model, in a sentence.
    """
    parts = [f"<h1>{text(title)}</h1>", f"<p class=small>{text(about)}</p>"]
    for one in results:
        parts += [
            f"<h2>{text(one.query)}</h2>",
            "" if one.query_image is None else _image(one.query_image, name=one.query, style="query"),
        ]
        parts.append(f"<ol class=hits>{''.join(map(_card, one.cards))}</ol>")
    return page(title, parts, style=_STYLE)


def _card(card: Card) -> str:
    shown = f"<p>{text(card.words)}</p>" if card.image is None else _thumbnail_of(card.image, card.name)
    return f"<li><figure>{shown}</figure><p><span class=score>{card.score:.4f}</span> {text(card.name)}</p></li>"


def _thumbnail_of(read: Callable[[], bytes], name: str) -> str:
    try:
        content = read()
    except (OSError, DataError) as error:
        _log.warning("no thumbnail of %s: %s", name, error)
        content = b""
    return _image(content, name=name) or "<p class=small>no preview</p>"


def _image(content: bytes, *, name: str, style: str = "") -> str:
    """A thumbnail, upright by its EXIF data; nothing for a file that Pillow cannot read."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.draft("RGB", (_LARGEST_SIDE, _LARGEST_SIDE))
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except Exception:  # Pillow's decoders raise errors of many classes
        return ""
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    encoded = base64.b64encode(file.getvalue()).decode()
    kind = f" class={style}" if style else ""
    return f'<img{kind} src="data:image/jpeg;base64,{encoded}" alt="{text(name)}">'
