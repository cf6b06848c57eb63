"""Images per second and core from ArrayRecord to uint8 batches, next to the bare JPEG decoder in the same run."""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from clipa_eqx.data.array_record_reader import RecordSource, open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.augment import ImageConfig
from clipa_eqx.data.colour import ColourConfig
from clipa_eqx.data.records import Record
from clipa_eqx.data.stream import StreamConfig, train_stream
from clipa_eqx.data.transforms import TrainTransform
from clipa_eqx.tokenizer import Tokenizer

_CAPTION = "an old wooden boat lies on the quiet shore of the lake under a heavy evening sky, photographed in 2019"


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_pictures(options.pictures, width=options.width, height=options.height)
        write_records(
            (
                Record(key=str(i), image=pictures[i % len(pictures)], captions=(_CAPTION,))
                for i in range(options.records)
            ),
            Path(folder) / "set",
        )
        source = open_records(Path(folder) / "set")
        kilobytes = statistics.mean(len(picture) for picture in pictures) / 1000
        print(f"{options.records} records of {options.pictures} different JPEGs,", end=" ")
        print(f"{options.width}x{options.height}, {kilobytes:.0f} kB each")
        print(
            f"stream: {options.workers} worker processes, {options.threads} threads, batch {options.batch}, "
            f"{options.length} tokens; best of {options.rounds} rounds of {options.seconds} s, rounds interleaved"
        )
        for size in options.sizes:
            measure_size(source, pictures, size=size, options=options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[112], help="sides of the square training picture, px")
    parser.add_argument("--pictures", type=int, default=128, help="number of different JPEGs")
    parser.add_argument("--records", type=int, default=4096, help="Grain shuffles sets of a few hundred slowly")
    parser.add_argument("--width", type=int, default=512, help="of the JPEGs, px")
    parser.add_argument("--height", type=int, default=384, help="of the JPEGs, px")
    parser.add_argument("--batch", type=int, default=64, help="records per batch")
    parser.add_argument("--length", type=int, default=16, help="text tokens; the stream tokenises too")
    parser.add_argument("--workers", type=int, default=0, help="worker processes of the stream (0: this process)")
    parser.add_argument("--threads", type=int, default=0, help="threads of the stream (0: this one only)")
    parser.add_argument("--seconds", type=float, default=1.5, help="per round and path")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def make_pictures(count: int, *, width: int, height: int) -> list[bytes]:
    """JPEGs (quality 90, 4:2:0) of noise with little fine detail, so that they have as many bytes as photographs."""
    rng = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falloff = 1 / np.maximum(np.hypot(rows, columns), 1 / max(width, height)) ** 1.6
    pictures: list[bytes] = []
    for _ in range(count):
        planes: list[np.ndarray] = []
        shared = rng.standard_normal((height, width))
        for _ in range(3):
            # Channels of photographs move together; independent ones would make chroma as dear as luma.
            field = np.fft.rfft2(shared + 0.3 * rng.standard_normal((height, width)))
            plane = np.fft.irfft2(field * falloff, s=(height, width))
            planes.append(128 + 50 * plane / plane.std())
        levels = np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(levels).save(file, "JPEG", quality=90)
        pictures.append(file.getvalue())
    return pictures


def measure_size(source: RecordSource, pictures: list[bytes], *, size: int, options: argparse.Namespace) -> None:
    """Print one row per path: rate, share of the bare scaled decode, time per picture."""
    paths: dict[str, Callable[[], int]] = {
        "bare simplejpeg, scaled": decoder(pictures, size=size),
        "bare simplejpeg, full": decoder(pictures, size=None),
    }
    streams = []
    tokenizer = Tokenizer.bert()
    for mode in ("fast", "exact"):
        for colour in (None, ColourConfig()):
            image = ImageConfig(size=(size, size), mode=mode, colour=colour)
            transform = TrainTransform(image=image, tokenizer=tokenizer, length=options.length)
            stream = train_stream(
                source,
                transform,
                batch_size=options.batch,
                seed=0,
                config=StreamConfig(workers=options.workers, threads=options.threads),
            )
            streams.append(stream)
            name = f"{mode}: crop, tokens" + ("" if colour is None else ", colour")
            paths[name] = lambda stream=stream: len(next(stream)["image"])
    rates = dict.fromkeys(paths, 0.0)
    try:
        for _ in range(options.rounds):
            for name, take in paths.items():
                rates[name] = max(rates[name], rate(take, seconds=options.seconds))
    finally:
        for stream in streams:
            stream.close()
    bare = rates["bare simplejpeg, scaled"]
    print(f"\n{size} px{'':26}images/s   of bare   us/image")
    for name, per_second in rates.items():
        print(f"{name:30}{per_second:10.0f}{per_second / bare:10.2f}{1e6 / per_second:11.0f}")


def decoder(pictures: list[bytes], *, size: int | None) -> Callable[[], int]:
    """Decode from memory to at least `size` a side (None: in full); crops of the stream often need a larger scale."""
    side = size or 0  # 0: no least size, hence no scaling
    part = pictures[:64]

    def decode() -> int:
        for picture in part:
            simplejpeg.decode_jpeg(picture, "RGB", min_height=side, min_width=side)
        return len(part)

    return decode


def rate(take: Callable[[], int], *, seconds: float) -> float:
    """Images per second after one unmeasured call."""
    take()
    images, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        images += take()
    return images / elapsed


if __name__ == "__main__":
    main()
