"""Synthetic photos in folders as users have them: images, a list of captions next to them, images by class."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLORS = ("red", "green", "blue", "yellow", "white", "orange")
SHAPES = ("circle", "square", "bar", "cross")


def write_photos(folder: Path, *, count: int, by_class: int) -> None:
    """Write ``folder/photos`` with ``captions.csv``, and ``folder/sorted`` with a folder for each shape.

    Args:
        count: images with captions.
        by_class: images per class folder; none of them is among those with captions.
    """
    rng = np.random.default_rng(0)
    photos = folder / "photos"
    photos.mkdir(parents=True)
    with (photos / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "caption"])
        for i in range(count):
            color, shape = COLORS[i % len(COLORS)], SHAPES[i // len(COLORS) % len(SHAPES)]
            _draw(rng, color, shape).save(photos / f"{i:05}.jpg", quality=90)
            writer.writerow([f"{i:05}.jpg", f"a {color} {shape} on a dark ground"])
    for shape in SHAPES:
        (folder / "sorted" / shape).mkdir(parents=True)
        for i in range(by_class):
            _draw(rng, COLORS[i % len(COLORS)], shape).save(folder / "sorted" / shape / f"{i:03}.jpg", quality=90)


def _draw(rng: np.random.Generator, color: str, shape: str) -> Image.Image:
    width, height = (int(side) for side in rng.integers(96, 200, 2))
    noise = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    draw = ImageDraw.Draw(image)
    size = int(rng.integers(24, 60))
    x, y = int(rng.integers(0, width - size)), int(rng.integers(0, height - size))
    match shape:
        case "circle":
            draw.ellipse((x, y, x + size, y + size), fill=color)
        case "square":
            draw.rectangle((x, y, x + size, y + size), fill=color)
        case "bar":
            draw.rectangle((x, y + size // 3, x + size, y + size // 2), fill=color)
        case _:
            draw.line((x, y, x + size, y + size), fill=color, width=6)
            draw.line((x + size, y, x, y + size), fill=color, width=6)
    return image
