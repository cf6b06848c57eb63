"""Training samples as cards of a page, with their images embedded."""

import base64
import io
from collections.abc import Sequence

from PIL import Image

from clipa_eqx.reports.page import text
from clipa_eqx.reports.samples import Sample

CARDS_STYLE = """
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));gap:.9rem;padding:0;list-style:none}
.cards li{font-size:.8rem;line-height:1.4;overflow-wrap:anywhere;min-width:0}
.cards img{display:block;width:100%;height:auto;border-radius:.3rem;image-rendering:pixelated}
.cards img.large{image-rendering:auto}.cards p{margin:.25rem 0}.cards .tokens{color:var(--curve-1)}
"""

_LARGEST_SIDE = 224
"""Pixels; larger images are shrunk to it."""

_LARGEST_PNG = 64
"""Pixels; smaller images keep every pixel, larger ones are stored as JPEG, which takes a tenth of the space."""


def sample_cards(samples: Sequence[Sample]) -> str:
    """A list of cards: the image, the record's captions, and the tokens as text."""
    return f"<ul class=cards>{''.join(map(_card, samples))}</ul>"


def _card(sample: Sample) -> str:
    image = Image.fromarray(sample.image)
    is_small = max(image.size) <= _LARGEST_PNG
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG") if is_small else image.save(file, "JPEG", quality=88)
    content = base64.b64encode(file.getvalue()).decode()
    kind, large = ("png", "") if is_small else ("jpeg", " class=large")
    return (
        f'<li><img{large} src="data:image/{kind};base64,{content}" width={image.width} height={image.height} '
        f'alt="{text(sample.caption)}"><p>{text(sample.caption)}</p><p class=tokens>{text(sample.tokens)}</p>'
        f"<p class=small>{text(sample.title)}</p></li>"
    )
