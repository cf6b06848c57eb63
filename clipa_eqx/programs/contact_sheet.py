"""A contact sheet of training samples: the image that the model sees, the captions, and the tokens as text again."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
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

_CELL, _GAP, _LINE, _FONT = 192, 8, 13, 11
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
    named = tuple(_Named(folder=source.folder, manifest=source.manifest) for source in mixture.sources)
    mixture = replace(mixture, sources=named)
    # Sample numbers do not depend on the batch size, so one batch shows the first samples of any run.
    stream = train_stream(
        mixture, transform, batch_size=samples, seed=seed, on_bad_record=on_bad_record, config=StreamConfig(threads=0)
    )
    with stream:
        batch = next(stream)
    cells: list[Image.Image] = []
    for row, record in enumerate(mixture.read(batch["sample_id"].tolist())):
        if isinstance(record, DataError):
            raise record
        cut = " ..." if batch["truncated"][row] else ""
        source = f" of source {batch['source'][row]}" if len(mixture.sources) > 1 else ""
        cells.append(
            _cell(
                batch["image"][row],
                title=f"{record.key}{source}",
                caption=" | ".join(record.captions),
                tokens=f"{transform.tokenizer.decode(batch['tokens'][row])}{cut}",
            )
        )
    _save(_tile(cells), path)


class _Named(RecordSource):
    """Records in which the class name stands in for captions where a record has only a label."""

    def read_each(self, indices: Sequence[int]) -> list[Record | DataError]:
        return [
            one if isinstance(one, DataError) or one.captions or one.label is None else self._named(one, one.label)
            for one in super().read_each(indices)
        ]

    def _named(self, record: Record, label: int) -> Record:
        names = self.manifest.class_names or ()
        return replace(record, captions=(names[label] if 0 <= label < len(names) else f"class {label}",))


def _cell(pixels: np.ndarray, *, title: str, caption: str, tokens: str) -> Image.Image:
    height, width = pixels.shape[:2]
    factor = max(1, _CELL // max(height, width))
    shown = Image.fromarray(np.ascontiguousarray(pixels)).resize(
        (width * factor, height * factor), Image.Resampling.NEAREST
    )
    if max(shown.size) > _CELL:
        shown.thumbnail((_CELL, _CELL))
    lines = 1 + _CAPTION_LINES + _TOKEN_LINES
    cell = Image.new("RGB", (_CELL, _CELL + lines * _LINE + 2), "white")
    cell.paste(shown, ((_CELL - shown.width) // 2, (_CELL - shown.height) // 2))
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(_FONT)
    y = _CELL + 2
    for text, count, color in (
        (title, 1, "#777777"),
        (caption, _CAPTION_LINES, "black"),
        (tokens, _TOKEN_LINES, "#0050a0"),
    ):
        for line in _wrap(text, count):
            draw.text((0, y), line, fill=color, font=font)
            y += _LINE
    return cell


def _wrap(text: str, lines: int) -> Sequence[str]:
    return textwrap.wrap(text, width=_CELL // 6, max_lines=lines, placeholder=" ...") or [""]


def _tile(cells: Sequence[Image.Image]) -> Image.Image:
    across = min(len(cells), 6)
    down = -(-len(cells) // across)
    width, height = cells[0].width + _GAP, cells[0].height + _GAP
    sheet = Image.new("RGB", (across * width + _GAP, down * height + _GAP), "white")
    for number, cell in enumerate(cells):
        sheet.paste(cell, (_GAP + number % across * width, _GAP + number // across * height))
    return sheet


def _save(sheet: Image.Image, path: Path) -> None:
    try:
        with new_file(path) as temporary:
            sheet.save(temporary, Image.registered_extensions()[path.suffix.lower()])
    except OSError as error:
        raise ConfigError(f"--sheet {path} cannot be written: {error}") from error
