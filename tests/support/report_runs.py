"""Run folders with everything that a report shows: a long log with scores of all suites, photos, and hostile text."""

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.records import Record
from clipa_eqx.experiment import DataConfig, DataSource
from support.run_folders import config_of, write_run
from support.tiny_models import PIECES, tiny_clip_config

HOSTILE = "<script>alert('caption')</script> & <b>a cat</b>"
SCORES = (
    *(f"zero_shot/imagenet_val/{name}" for name in ("top1", "top5")),
    *(f"retrieval/coco/{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
    *(f"contrastive/coco/{name}" for name in ("loss", "accuracy")),
    *(f"few_shot/a_record_folder_with_a_long_name/{shots}_shot{seed}" for shots in (1, 5) for seed in ("", "/seed_0")),
    "linear_probe/pets/top1",
)


def write_photo_records(folder: Path, *, count: int = 24, sides: tuple[int, int] = (120, 96)) -> Path:
    """A record folder of shapes with captions; the caption of each fourth is hostile, others are long."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        image = Image.fromarray(rng.integers(0, 70, (sides[1], sides[0], 3), dtype=np.uint8))
        box = (*(rng.integers(4, 40, 2).tolist()), *(rng.integers(60, 90, 2).tolist()))
        ImageDraw.Draw(image).ellipse(box, fill=("red", "gold", "teal", "orchid")[i % 4])
        file = io.BytesIO()
        image.save(file, "JPEG")
        caption = HOSTILE if i % 4 == 0 else f"a photo of a cat and a dog w{i % 7} " + "of a photo " * (i % 3)
        rows.append(Record(key=f"photos/{i:05d}.jpg", image=file.getvalue(), captions=(caption,)))
    write_records(rows, folder)
    return folder


def photo_config(records: Path, *, steps: int, **fields):
    """A run over these records, 96 pixels."""
    vocab = records.parent / "vocab.txt"
    vocab.write_text("".join(f"{piece}\n" for piece in PIECES), encoding="utf-8")
    return config_of(
        steps=steps,
        model=tiny_clip_config(image={"image_size": (96, 96)}),
        data=DataConfig(sources=(DataSource(folder=str(records)),), image=ImageConfig(size=(96, 96)), vocab=str(vocab)),
        eval_image=EvalImageConfig(size=(96, 96)),
        **fields,
    )


def long_log(
    *, steps: int, end: int | None = None, speed: float = 800.0, seed: int = 0, now: float = 1e9
) -> list[dict]:
    """A line every 10 steps up to step ``end``, and all suites every 1000 steps."""
    rng = np.random.default_rng(seed)
    lines = []
    for step in (1, 2, *range(10, (end or steps) + 1, 10)):
        part = step / steps
        line = {
            "step": step,
            "loss": 4.8 * math.exp(-3 * part) + 0.6 + 0.15 * float(rng.standard_normal()),
            "accuracy": min(0.9, max(0.0, 0.8 * (1 - math.exp(-2 * part)) + 0.03 * float(rng.standard_normal()))),
            "grad_norm/image/blocks": [0.1, 0.2],
            "lr": 1e-3 * min(step / 500, 0.5 + 0.5 * math.cos(math.pi * part)),
            "examples_seen": 8 * step,
            "epoch": step / 1e3,
            "images_per_second": speed * (1 + 0.05 * float(rng.standard_normal())),
            "images_per_second_per_device": speed / 8,
            "seconds_per_step": 8 / speed,
            "input_bound_percent": 12.5 + 5 * math.sin(part * 20),
            "time": now - (steps - step) * 8 / speed,
        }
        if step % 1000 == 0:
            line |= {
                name: (3.0 - 2 * part) if name.endswith("loss") else (0.1 + 0.08 * (n % 3)) * (1 + 2 * part)
                for n, name in enumerate(SCORES)
            }
        lines.append(line)
    return lines


def write_long_run(folder: Path, records: Path, *, steps: int = 20_000, end: int | None = None, **log) -> Path:
    """A run folder of ``photo_config`` with ``long_log``."""
    return write_run(folder, photo_config(records, steps=steps), long_log(steps=steps, end=end, **log))
