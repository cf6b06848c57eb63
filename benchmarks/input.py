"""Images per second of one core from ArrayRecord to uint8 batches, next to tf.data and the bare decoder, in one run.

All sides share one core, also their threads: (a) the reference's pipeline rebuilt with tf.data, from TFRecord, with a
cheaper stand-in for its tokenizer (described in benchmarks/reference_input.py), (b) simplejpeg decoding the same JPEGs
at the fastest scale that covers the wanted size, and ours with crop and tokens, with color jitter, and in the exact
mode; (b) and ours also for the JPEGs that --max-side stores. Rounds are interleaved, and each ratio is of two
neighboring rounds: the median, and the least and the largest of them.
"""

import argparse
import io
import math
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from clipa_eqx.data.array_record_reader import RecordSource, open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.images.augment import ImageConfig, ImageMode
from clipa_eqx.data.images.color import ColorConfig
from clipa_eqx.data.prefetch import BatchIterator, StreamConfig
from clipa_eqx.data.records import Record
from clipa_eqx.data.stream import train_stream
from clipa_eqx.data.transforms import TrainTransform
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from conversion.records.checks import fit_image
from conversion.records.options import IngestOptions

_CAPTION = "an old wooden boat lies on the quiet shore of the lake under a heavy evening sky, photographed in 2019"
_ROOT = Path(__file__).parents[1]
_QUIET = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
_REFERENCE = "(a) tf.data"
_BARE = "(b) bare decode"
_LINKS = 32
_MODES: tuple[tuple[ImageMode, ColorConfig | None], ...] = (("fast", None), ("fast", ColorConfig()), ("exact", None))


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = make_images(options.images, width=options.width, height=options.height)
        sets = {"": write_set(folder / "set", images, records=options.records)}
        if options.soak:
            soak(sets[""], options)
            return
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        stored = {"": images}
        for side in options.max_side:
            stored[f", max-side {side}"] = shrink(images, max_side=side, quality=options.jpeg_quality)
            sets[f", max-side {side}"] = write_set(
                folder / f"set-{side}", stored[f", max-side {side}"], records=options.records
            )
        sizes = ", ".join(f"{statistics.mean(map(len, some)) / 1000:.1f}" for some in stored.values())
        print(f"{len(images)} different JPEGs of {options.width}x{options.height} px, as they are and re-encoded with")
        print(f"--max-side {options.max_side}, quality {options.jpeg_quality} ({sizes} kB each on average); one core;")
        print(f"batch {options.batch}, {options.length} tokens; {options.rounds} rounds of {options.seconds} s")
        for size in options.sizes:
            measure_size(folder, sets, stored, size=size, options=options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 112, 224], help="sides of the images made, px")
    parser.add_argument("--images", "--pictures", type=int, default=128, help="number of different JPEGs")
    parser.add_argument("--records", type=int, default=4096, help="records of a shard; a set has 32 links to it")
    parser.add_argument("--width", type=int, default=512, help="width of the JPEGs, px")
    parser.add_argument("--height", type=int, default=384, help="height of the JPEGs, px")
    parser.add_argument("--max-side", type=int, nargs="*", default=[256], help="longest sides after conversion, px")
    parser.add_argument(
        "--jpeg-quality", type=int, default=IngestOptions().jpeg_quality, help="quality after --max-side"
    )
    parser.add_argument("--only-fast", action="store_true", help="leave out color jitter and the exact mode")
    parser.add_argument("--batch", type=int, default=64, help="records per batch")
    parser.add_argument("--length", type=int, default=16, help="text tokens")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds per round and path")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="run one stream for so long; print its rates")
    parser.add_argument("--workers", type=int, default=0, help="worker processes of the soak (0: this process)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the soak, per process")
    return parser.parse_args()


def make_images(count: int, *, width: int, height: int) -> list[bytes]:
    """JPEGs (quality 90, 4:2:0) of noise with little fine detail, which are as large as those of photographs."""
    rng = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falloff = 1 / np.maximum(np.hypot(rows, columns), 1 / max(width, height)) ** 1.6
    images: list[bytes] = []
    for _ in range(count):
        planes: list[np.ndarray] = []
        shared = rng.standard_normal((height, width))
        for _ in range(3):
            # Channels of photographs are correlated; independent ones would make chroma as expensive as luma.
            field = np.fft.rfft2(shared + 0.3 * rng.standard_normal((height, width)))
            plane = np.fft.irfft2(field * falloff, s=(height, width))
            planes.append(128 + 50 * plane / plane.std())
        levels = np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(levels).save(file, "JPEG", quality=90)
        images.append(file.getvalue())
    return images


def shrink(images: list[bytes], *, max_side: int, quality: int) -> list[bytes]:
    """The JPEGs that a conversion with ``--max-side`` stores."""
    options = IngestOptions(max_side=max_side, jpeg_quality=quality)
    return [data for data in (fit_image(image, options=options) for image in images) if isinstance(data, bytes)]


def write_set(folder: Path, images: list[bytes], *, records: int) -> RecordSource:
    """Write one shard and open a set of it and links to it: an order of few records takes longer to shuffle."""
    rows = (Record(key=str(i), image=images[i % len(images)], captions=(_CAPTION,)) for i in range(records))
    write_records(rows, folder, records_per_shard=records)
    manifest = open_records(folder).manifest
    (shard,) = manifest.shards
    links = [replace(shard, name=f"link-{number:02d}.array_record") for number in range(_LINKS)]
    for link in links:
        os.link(folder / shard.name, folder / link.name)
    rows_in_all = records * _LINKS
    linked = replace(manifest, shards=tuple(links), rows_read=rows_in_all, rows_written=rows_in_all)
    return RecordSource(folder=str(folder), manifest=linked)


def make_stream(source: RecordSource, image: ImageConfig, options: argparse.Namespace, **stream: int) -> BatchIterator:
    transform = TrainTransform(image=image, tokenizer=Tokenizer.bert(), length=options.length)
    return train_stream(source, transform, batch_size=options.batch, seed=0, config=StreamConfig(**stream))


def measure_size(
    folder: Path,
    sets: dict[str, RecordSource],
    stored: dict[str, list[bytes]],
    *,
    size: int,
    options: argparse.Namespace,
) -> None:
    """Print one row per path: images/s of the best round, ratios to both other sides, microseconds per image."""
    rounds: dict[str, Callable[[], float]] = {}
    streams: list[BatchIterator] = []
    reference = start_reference(folder, stored[""], size=size, options=options)
    try:
        rounds[_REFERENCE] = lambda: ask(reference)
        for name, source in sets.items():
            bare = decoder(stored[name], size=size)
            rounds[_BARE + name] = lambda bare=bare: rate(bare, seconds=options.seconds)
            for mode, color in _MODES[:1] if options.only_fast else _MODES:
                image = ImageConfig(size=(size, size), mode=mode, color=color)
                stream = make_stream(source, image, options, threads=0)
                streams.append(stream)
                title = f"{mode}{name}" + ("" if color is None else ", color")
                rounds[title] = lambda stream=stream: rate(lambda: len(next(stream)["image"]), seconds=options.seconds)
        rates: dict[str, list[float]] = {title: [] for title in rounds}
        for _ in range(options.rounds):
            for title, take in rounds.items():
                rates[title].append(take())
    finally:
        for stream in streams:
            stream.close()
        # It ends at the end of its input. Killed, TensorFlow would leave files in the temporary folder.
        reference.process.communicate()
    print(f"\n{size} px{'':28}images/s          / (a)                 / (b)      us/image")
    bare = _BARE
    for title, found in rates.items():
        bare = title if title.startswith(_BARE) else bare
        ratios = "".join(f"{spread(found, rates[one]):>20}" for one in (_REFERENCE, bare))
        print(f"{title:32}{max(found):10.0f}{ratios}{1e6 / max(found):10.0f}")


def spread(ours: list[float], theirs: list[float]) -> str:
    """Median of the ratios of neighboring rounds, with the least and the largest."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


class Reference(NamedTuple):
    """The process of the other side, and how to talk to it."""

    process: subprocess.Popen[str]
    requests: IO[str]
    answers: IO[str]


def start_reference(folder: Path, images: list[bytes], *, size: int, options: argparse.Namespace) -> Reference:
    """Start the other side in a process of its own, on the same core; it is idle until asked."""
    path = folder / "set.tfrecord"
    if not path.exists():
        code = (
            "import pickle, sys, pathlib, benchmarks.reference_input as r\n"
            "images, caption, records = pickle.load(sys.stdin.buffer)\n"
            "r.write_tfrecords(pathlib.Path(sys.argv[1]), images, caption=caption, records=records)"
        )
        given = pickle.dumps((images, _CAPTION, options.records))
        subprocess.run(
            [sys.executable, "-c", code, str(path)],
            input=given,
            check=True,
            stderr=subprocess.DEVNULL,
            cwd=_ROOT,
            env=_QUIET,
        )
    sides = ("--size", size, "--length", options.length, "--batch", options.batch, "--seconds", options.seconds)
    command = [sys.executable, "-m", "benchmarks.reference_input", str(path), *map(str, sides)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=_QUIET,
        cwd=_ROOT,
    )
    if process.stdin is None or process.stdout is None or process.stdout.readline().strip() != "ready":
        raise SystemExit("benchmarks.reference_input did not start; it needs: pip install tensorflow")
    return Reference(process, process.stdin, process.stdout)


def ask(reference: Reference) -> float:
    """Measure one round of the other side, in images per second; then wait until it has filled its buffer again."""
    reference.requests.write("\n")
    reference.requests.flush()
    found = float(reference.answers.readline())
    time.sleep(0.5)
    return found


def decoder(images: list[bytes], *, size: int) -> Callable[[], int]:
    """A function that decodes 64 images from memory to at least ``size`` px per side, as fast as possible.

    It uses the fastest of the scales that suffice, because libjpeg-turbo has vector code for some scales only. Crops of
    the stream often need a larger scale.
    """
    height, width = map(int, simplejpeg.decode_jpeg_header(images[0])[:2])
    scales = [eighths / 8 for eighths in range(1, 9) if min(height, width) * eighths / 8 >= size] or [1.0]
    decoders = [partial(decode, images[:64], height=height, width=width, scale=scale) for scale in scales]
    # In turns, because a busy moment of the machine would reject the right one.
    rates = [[rate(one, seconds=0.1) for one in decoders] for _ in range(4)]
    best = [max(found) for found in zip(*rates, strict=True)]
    return decoders[best.index(max(best))]


def decode(images: list[bytes], *, height: int, width: int, scale: float) -> int:
    least_height, least_width = math.ceil(height * scale), math.ceil(width * scale)
    for image in images:
        simplejpeg.decode_jpeg(image, "RGB", min_height=least_height, min_width=least_width, min_factor=1 / scale)
    return len(images)


def rate(take: Callable[[], int], *, seconds: float) -> float:
    """Images per second after one unmeasured call."""
    take()
    images, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        images += take()
    return images / elapsed


def soak(source: RecordSource, options: argparse.Namespace) -> None:
    """Run one training stream for minutes; print rates and memory of all its processes after each tenth of the time.

    Images per second of processor time stay comparable if other programs share the machine.
    """
    size = options.sizes[0]
    image = ImageConfig(size=(size, size), color=ColorConfig())
    print(f"soak: {size} px with color, batch {options.batch}, {options.workers} workers of {options.threads} threads")
    print("minute  images/s  per CPU second  memory MiB: this process, workers", flush=True)
    with make_stream(source, image, options, workers=options.workers, threads=options.threads) as stream:
        next(stream)
        start = since = time.monotonic()
        images, used = 0, cpu_seconds()
        while (now := time.monotonic()) - start < 60 * options.soak + 1:
            images += len(next(stream)["image"])
            if now - since >= 6 * options.soak:
                cpu = cpu_seconds()
                own, *workers = map(resident_mib, processes())
                rates = f"{images / (now - since):10.0f}{images / (cpu - used):16.0f}"
                print(f"{(now - start) / 60:6.1f}{rates}{own:18.0f}{sum(workers):9.0f}", flush=True)
                images, since, used = 0, now, cpu


def processes() -> list[int]:
    """This process and its children."""
    files = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [os.getpid(), *(int(pid) for file in files for pid in file.read_text().split())]


def cpu_seconds() -> float:
    """Processor time that all processes have used, in seconds."""
    stats = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in processes())
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
