"""A contact sheet of training samples: the image that the model sees, the captions, and the tokens as text again."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.load_batch import OnBadRecord
from clipa_eqx.data.mixture import Mixture
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.records import Record
from clipa_eqx.data.stream import train_stream
from clipa_eqx.data.transforms import TrainTransform
from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.replacing import new_file

CELL, GAP = 192, 8
"""Pixels of the square that holds an image, and between two of them."""

_LINE, _FONT = 13, 11
_CAPTION_LINES, _TOKEN_LINES = 4, 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One training sample: its image after augmentation, and the texts below it."""

    image: UInt8[np.ndarray, "height width 3"]
    title: str
    caption: str
    tokens: str


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

    Images are enlarged by repeating pixels. A labeled record without captions is shown with its class name.

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
    _save(_tile([_cell(sample) for sample in shown]), path)


def read_samples(
    mixture: Mixture, transform: TrainTransform, *, samples: int, seed: int, on_bad_record: OnBadRecord = "error"
) -> list[Sample]:
    """The first samples that training with this seed sees. Raises DataError for a damaged record."""
    named = tuple(_Named(folder=source.folder, manifest=source.manifest) for source in mixture.sources)
    mixture = replace(mixture, sources=named)
    # Sample numbers do not depend on the batch size, so one batch shows the first samples of any run.
    stream = train_stream(
        mixture, transform, batch_size=samples, seed=seed, on_bad_record=on_bad_record, config=StreamConfig(threads=0)
    )
    with stream:
        batch = next(stream)
    shown: list[Sample] = []
    for row, record in enumerate(mixture.read(batch["sample_id"].tolist())):
        if isinstance(record, DataError):
            raise record
        cut = " ..." if batch["truncated"][row] else ""
        source = f" of source {batch['source'][row]}" if len(mixture.sources) > 1 else ""
        shown.append(
            Sample(
                image=batch["image"][row],
                title=f"{record.key}{source}",
                caption=" | ".join(record.captions),
                tokens=f"{transform.tokenizer.decode(batch['tokens'][row])}{cut}",
            )
        )
    return shown


class _Named(RecordSource):
    """Records in which the class name stands in for captions where a record has only a label."""

    def read_each(
        self, indices: Sequence[int], *, on_shard: Callable[[int], None] | None = None
    ) -> list[Record | DataError]:
        return [
            one if isinstance(one, DataError) or one.captions or one.label is None else self._named(one, one.label)
            for one in super().read_each(indices, on_shard=on_shard)
        ]

    def _named(self, record: Record, label: int) -> Record:
        names = self.manifest.class_names or ()
        return replace(record, captions=(names[label] if 0 <= label < len(names) else f"class {label}",))


def _cell(sample: Sample) -> Image.Image:
    height, width = sample.image.shape[:2]
    factor = max(1, CELL // max(height, width))
    shown = Image.fromarray(np.ascontiguousarray(sample.image)).resize(
        (width * factor, height * factor), Image.Resampling.NEAREST
    )
    if max(shown.size) > CELL:
        shown.thumbnail((CELL, CELL))
    lines = 1 + _CAPTION_LINES + _TOKEN_LINES
    cell = Image.new("RGB", (CELL, CELL + lines * _LINE + 2), "white")
    cell.paste(shown, ((CELL - shown.width) // 2, (CELL - shown.height) // 2))
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(_FONT)
    y = CELL + 2
    for text, count, color in (
        (sample.title, 1, "#777777"),
        (sample.caption, _CAPTION_LINES, "black"),
        (sample.tokens, _TOKEN_LINES, "#0050a0"),
    ):
        for line in _wrap(text, count):
            draw.text((0, y), line, fill=color, font=font)
            y += _LINE
    return cell


def _wrap(text: str, lines: int) -> Sequence[str]:
    return textwrap.wrap(text, width=CELL // 6, max_lines=lines, placeholder=" ...") or [""]


def _tile(cells: Sequence[Image.Image]) -> Image.Image:
    across = min(len(cells), 6)
    down = -(-len(cells) // across)
    width, height = cells[0].width + GAP, cells[0].height + GAP
    sheet = Image.new("RGB", (across * width + GAP, down * height + GAP), "white")
    for number, cell in enumerate(cells):
        sheet.paste(cell, (GAP + number % across * width, GAP + number // across * height))
    return sheet


def _save(sheet: Image.Image, path: Path) -> None:
    try:
        with new_file(path) as temporary:
            sheet.save(temporary, Image.registered_extensions()[path.suffix.lower()])
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"the sheet {path} cannot be written ({reason}); name another file with --sheet") from error
