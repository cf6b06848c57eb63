"""Effect of ``--max-side`` of a conversion on training images: resolution of the crops, fidelity and size.

For each side length: bytes per image; the share of crops that have fewer pixels than the result in a side or in both,
so that it is enlarged, and the mean enlargement of the sides of these crops; and the difference of the training image
from that of the original file with the same crop (``fast`` mode, PSNR of all pixels). Crops are sampled as in training,
for images of several aspect ratios in equal parts. benchmarks/input.py measures the speed.
"""

import argparse
import math

import numpy as np

from benchmarks.input import make_images
from clipa_eqx.data.images.crops import CropBox, sample_crop_box
from clipa_eqx.data.images.decode import image_size
from clipa_eqx.data.images.fast import Region, decode_for_region, resample
from clipa_eqx.data.sample_generators import sample_generators
from conversion.records.checks import fit_image
from conversion.records.options import IngestOptions

_CROPS = 4000


def main() -> None:
    options = parse_options()
    print(f"crops of at least {options.min_area:.0%} of the area; originals with a longer side of {options.longer} px")
    area, rows_down = shares(options)
    print(f"a crop has {area:.0%} of the area on average, and {rows_down:.0%} of the rows are above its lower edge")
    sets = {aspect: originals(aspect, options) for aspect in options.aspects}
    for size in options.sizes:
        print(f"\n{size} px    kB   smaller in a side   in both   enlarged by    PSNR   worst")
        for side in options.max_side:
            rows = [measure(images, size=size, max_side=side, options=options) for images in sets.values()]
            kilobytes, one, both, by, *noise = (np.concatenate(column) for column in zip(*rows, strict=True))
            enlarged = by[by > 1]
            print(
                f"{side:5}{kilobytes.mean():8.1f}{one.mean():19.1%}{both.mean():10.1%}"
                f"{enlarged.mean() if enlarged.size else 1:14.2f}"
                f"{psnr(noise[0].mean()):8.1f}{psnr(noise[0].max()):8.1f}"
            )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 84, 112], help="sides of the images made, px")
    parser.add_argument("--max-side", type=int, nargs="+", default=[256, 224, 192, 160, 144, 128, 112, 96])
    parser.add_argument("--jpeg-quality", type=int, default=IngestOptions().jpeg_quality)
    parser.add_argument("--min-area", type=float, default=0.4, help="least share of the area of a crop")
    parser.add_argument("--aspects", nargs="+", default=["4:3", "3:4", "1:1", "3:2", "2:3"], help="width:height")
    parser.add_argument("--longer", type=int, default=512, help="longer side of the original images, px")
    parser.add_argument("--images", type=int, default=8, help="original images of each aspect ratio")
    return parser.parse_args()


def shares(options: argparse.Namespace) -> tuple[float, float]:
    """Mean share of an image that is in the crop, and of the rows that a decoder must pass to reach its end."""
    area: list[float] = []
    rows: list[float] = []
    for aspect in options.aspects:
        width, height = sides(aspect, longer=options.longer)
        for rng in sample_generators(seed=0, samples=range(_CROPS)):
            box = sample_crop_box(rng, height, width, area=(options.min_area, 1.0))
            area.append(box.height * box.width / (height * width))
            rows.append((box.top + box.height) / height)
    return float(np.mean(area)), float(np.mean(rows))


def sides(aspect: str, *, longer: int) -> tuple[int, int]:
    """Width and height in pixels of an aspect ratio such as 4:3."""
    across, down = map(int, aspect.split(":"))
    return round(longer * across / max(across, down)), round(longer * down / max(across, down))


def originals(aspect: str, options: argparse.Namespace) -> list[bytes]:
    """JPEGs of one aspect ratio."""
    width, height = sides(aspect, longer=options.longer)
    return make_images(options.images, width=width, height=height)


def measure(
    images: list[bytes], *, size: int, max_side: int, options: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Measure one aspect ratio.

    Returns:
        Kilobytes of each stored image; of each crop, whether a side and whether both sides are smaller than ``size``;
        the enlargement of each side of each crop; the mean squared difference of some training images.
    """
    ingest = IngestOptions(max_side=max_side, jpeg_quality=options.jpeg_quality)
    stored = [image for image in (fit_image(data, options=ingest) for data in images) if isinstance(image, bytes)]
    full, small = image_size(images[0]), image_size(stored[0])
    boxes = [
        sample_crop_box(rng, *small, area=(options.min_area, 1.0))
        for rng in sample_generators(seed=0, samples=range(_CROPS))
    ]
    sides = np.array([(box.height, box.width) for box in boxes], np.float64)
    scale = (full.height / small.height, full.width / small.width)
    noise = [
        difference(original, image, box, scale=scale, size=size)
        for original, image, box in zip(images * 4, stored * 4, boxes, strict=False)
    ]
    kilobytes = np.array([len(image) / 1000 for image in stored])
    smaller = np.less(sides, size)
    return kilobytes, np.any(smaller, axis=1), np.all(smaller, axis=1), np.divide(size, sides).ravel(), np.array(noise)


def difference(original: bytes, image: bytes, box: CropBox, *, scale: tuple[float, float], size: int) -> float:
    """Mean squared difference of two training images that show the same region, in levels of 255."""
    region = Region(*map(float, box))
    across = Region(box.top * scale[0], box.left * scale[1], box.height * scale[0], box.width * scale[1])
    made, expected = (
        resample(decode_for_region(data, part, size=(size, size)), part, size=(size, size)).astype(np.float64)
        for data, part in ((image, region), (original, across))
    )
    return float(np.mean((made - expected) ** 2))


def psnr(error: float) -> float:
    return 10 * math.log10(255**2 / max(error, 1e-9))


if __name__ == "__main__":
    main()
