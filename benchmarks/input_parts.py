"""Share of each part of the input in the processor time of an image, by sampling the stream of benchmarks/input.py.

A timer interrupts the process once per millisecond of its processor time. The time goes to the innermost function of
the call stack that belongs to a part; calls into compiled code count for the function that makes them. Everything else,
such as the calls between the parts, is "the rest".
"""

import argparse
import os
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from benchmarks.input import make_images, make_stream, shrink, write_set
from clipa_eqx.data.images.augment import ImageConfig

_PARTS = {
    "_decode_jpeg": "decoding",
    "resize_vectorized": "cropping and resizing",
    "resample": "cropping and resizing",
    "_read_shard": "reading the record",
    "sample_augmentation": "random choices",
    "sample_generators": "random choices",
    "encode": "tokens",
    "_put": "copying into the batch",
}


def main() -> None:
    options = parse_options()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    images = make_images(options.images, width=512, height=384)
    if options.max_side:
        images = shrink(images, max_side=options.max_side, quality=95)
    with tempfile.TemporaryDirectory() as name:
        source = write_set(Path(name) / "set", images, records=options.records)
        with make_stream(source, ImageConfig(size=(options.size, options.size)), options, threads=0) as stream:
            next(stream)
            found: Counter[str] = Counter()
            signal.signal(signal.SIGPROF, lambda _, frame: found.update([part_of(frame)]))
            signal.setitimer(signal.ITIMER_PROF, 1e-3, 1e-3)
            made, start = 0, time.process_time()
            while (used := time.process_time() - start) < options.seconds:
                made += len(next(stream)["image"])
            signal.setitimer(signal.ITIMER_PROF, 0)
    print(f"{options.size} px, max-side {options.max_side or 'none'}: {1e6 * used / made:.0f} microseconds per image")
    for part, count in found.most_common():
        share = count / found.total()
        print(f"{part:24}{share:6.1%}{1e6 * used / made * share:8.0f} us")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=112, help="side of the images made, px")
    parser.add_argument("--max-side", type=int, help="longest side after conversion, px (off)")
    parser.add_argument("--images", type=int, default=64, help="number of different JPEGs")
    parser.add_argument("--records", type=int, default=1024, help="records of the shard")
    parser.add_argument("--batch", type=int, default=64, help="records per batch")
    parser.add_argument("--length", type=int, default=16, help="text tokens")
    parser.add_argument("--seconds", type=float, default=6.0, help="seconds of processor time")
    return parser.parse_args()


def part_of(frame: FrameType | None) -> str:
    while frame is not None:
        if frame.f_code.co_name in _PARTS:
            return _PARTS[frame.f_code.co_name]
        frame = frame.f_back
    return "the rest"


if __name__ == "__main__":
    main()
