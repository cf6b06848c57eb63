"""Speed of converting img2dataset tars to records, in MB/s of source, compared with copying the files in one run.

With ``--engine ray`` also on a Ray cluster of as many processors as there are workers, compared with these workers.
"""

import argparse
import contextlib
import io
import os
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipa_eqx.cluster.connection import connected
from clipa_eqx.cluster.engine import LOCAL, Engine
from conversion.records.convert import convert
from conversion.records.nodes import facts_of_bytes
from conversion.records.options import IngestOptions
from conversion.records.verify import find_damage

ON_RAY, CONNECTING = ", on Ray", "connecting to Ray"


def main() -> None:
    options = parse_options()
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as name,
        ray_cluster(options.workers) if options.engine == "ray" else contextlib.nullcontext() as engine,
    ):
        folder = Path(name)
        size = write_source(folder / "source", options)
        rows = options.shards * options.rows
        print(f"{options.shards} tars of {options.rows} JPEGs, {options.width}x{options.height}, {size / 1e6:.0f} MB")
        print(f"median of {options.rounds} rounds, interleaved; files are in the page cache and synced to disk")
        tasks = make_tasks(folder, options, engine)
        tasks = {task: run for task, run in tasks.items() if options.only in task or not task.startswith("convert")}
        times: dict[str, list[float]] = {task: [] for task in tasks}
        for _ in range(options.rounds):
            for task, run in tasks.items():
                shutil.rmtree(folder / "out", ignore_errors=True)
                start = time.perf_counter()
                with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
                    run()
                times[task].append(time.perf_counter() - start)
        copying = statistics.median(next(iter(times.values())))
        for task, seconds in times.items():
            median = statistics.median(seconds)
            print(
                f"{task:<46} {size / 1e6 / median:7.1f} MB/s  {rows / median:8.0f} rows/s  "
                f"{100 * copying / median:5.1f} % of copying"
            )
        if engine is not None:
            print_overheads({task: statistics.median(seconds) for task, seconds in times.items()}, options.workers)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shards", type=int, default=6, help="tars of the source")
    parser.add_argument("--rows", type=int, default=1000, help="rows of each tar")
    parser.add_argument("--width", type=int, default=512, help="size of the JPEGs, px")
    parser.add_argument("--height", type=int, default=384, help="size of the JPEGs, px")
    parser.add_argument("--workers", type=int, default=2, help="processes of the conversions that are not by 1 worker")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="convert only in ways whose names contain this, such as `full`")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="ray: also on a Ray cluster")
    parser.add_argument("--folder", type=Path, help="folder to write to (that of temporary files)")
    return parser.parse_args()


@contextlib.contextmanager
def ray_cluster(processors: int) -> Generator[Engine]:
    """A cluster of one node on this machine, in processes of its own."""
    from ray.cluster_utils import Cluster

    start = time.perf_counter()
    node = {"num_cpus": processors, "object_store_memory": 256 * 2**20, "include_dashboard": False}
    cluster: Any = Cluster(initialize_head=True, head_node_args=node)
    engine = Engine(kind="ray", address=cluster.address)
    print(f"Ray cluster of {processors} processors started in {time.perf_counter() - start:.1f} s, outside the clock")
    try:
        yield engine
    finally:
        cluster.shutdown()


def print_overheads(seconds: dict[str, float], workers: int) -> None:
    """Print by how much Ray is slower than the same number of local workers."""
    connecting = seconds[CONNECTING]
    print(f"connecting to the cluster, starting a worker process and comparing nodes: {connecting:.1f} s")
    for task, ray in seconds.items():
        if task.endswith(ON_RAY):
            local = seconds[task.removesuffix(ON_RAY) + f", {workers} workers"]
            print(
                f"{task:<46} {100 * (ray / local - 1):+6.1f} % time over {workers} local workers, "
                f"{100 * ((ray - connecting) / local - 1):+.1f} % without the connection"
            )


def make_tasks(folder: Path, options: argparse.Namespace, engine: Engine | None) -> dict[str, Callable[[], object]]:
    def converting(workers: int | None, options: IngestOptions, engine: Engine = LOCAL) -> Callable[[], object]:
        def run() -> None:
            source, target = str(folder / "source"), str(folder / "out")
            convert("webdataset", source, target, options=options, workers=workers, engine=engine)

        return run

    def copy() -> None:
        (folder / "out").mkdir()
        for path in sorted((folder / "source").iterdir()):
            shutil.copyfile(path, folder / "out" / path.name)
            with (folder / "out" / path.name).open("rb") as file:
                os.fsync(file.fileno())

    def check() -> None:
        _, problems = find_damage(str(folder / "kept"))
        assert problems == []

    header, full, smaller = IngestOptions(validate="header"), IngestOptions(), IngestOptions(max_side=256)
    convert("webdataset", str(folder / "source"), str(folder / "kept"), options=header)
    several = options.workers
    on_ray: dict[str, Callable[[], object]] = {}
    if engine is not None:

        def connect(engine: Engine = engine) -> None:
            with connected(engine, facts=partial(facts_of_bytes, "webdataset", IngestOptions())):
                pass

        on_ray = {
            CONNECTING: connect,
            f"convert --validate header{ON_RAY}": converting(None, header, engine),
            f"convert --validate full{ON_RAY}": converting(None, full, engine),
            f"convert --max-side 256{ON_RAY}": converting(None, smaller, engine),
        }
    return {
        "copying the files": copy,
        "convert --validate header, 1 worker": converting(1, header),
        f"convert --validate header, {several} workers": converting(several, header),
        "convert --validate full, 1 worker": converting(1, full),
        f"convert --validate full, {several} workers": converting(several, full),
        "convert --max-side 256, 1 worker": converting(1, smaller),
        f"convert --max-side 256, {several} workers": converting(several, smaller),
        "verify, 1 worker": check,
        **on_ray,
    }


def write_source(folder: Path, options: argparse.Namespace) -> int:
    """Write tars of photograph-like noise (64 different JPEGs); return the bytes of all tars."""
    images = [make_image(i, options) for i in range(64)]
    folder.mkdir()
    for shard in range(options.shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in range(options.rows):
                key = f"{shard:05d}{row:04d}"
                for suffix, content in (("jpg", images[row % 64]), ("json", b"{}"), ("txt", f"row {key}".encode())):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return sum(path.stat().st_size for path in folder.iterdir())


def make_image(seed: int, options: argparse.Namespace) -> bytes:
    """Noise with the falling spectrum of photographs."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(options.height)[:, None], np.fft.fftfreq(options.width)[None])
    noise = rng.standard_normal((3, options.height, options.width))
    noise = 0.9 * noise[:1] + 0.1 * noise  # colors vary less than brightness
    waves = np.fft.ifft2(np.fft.fft2(noise) / (frequency + 1e-2) ** 1.7).real
    pixels = np.clip(128 + 50 * waves / waves.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return file.getvalue()


if __name__ == "__main__":
    main()
