"""Cost of growth: more devices, more parts of fsdp, more steps done, more ingest workers, and the phases of a start.

One part a call, `--part devices`, `fsdp`, `resume`, `ingest` or `start`, or all of them. All devices are simulated on
the processors of this machine, so images/s over all devices should stay as they are: what is lost is the cost of
splitting the work.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DEVICES = (1, 2, 4, 8)
PARTS = ("devices", "fsdp", "resume", "ingest", "start")


def main() -> None:
    options = parse_options()
    if options.child:
        print(json.dumps(start_phases(Path(options.child), float(options.launched))))
        return
    os.environ.update(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(DEVICES[-1]), TF_CPP_MIN_LOG_LEVEL="3")
    for part in [options.part] if options.part else PARTS:
        print(f"{part}:", flush=True)
        rows = {"devices": devices, "fsdp": fsdp, "resume": resume, "ingest": ingest, "start": start}[part](options)
        for row in rows:
            print(f"  {row}", flush=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="the part to measure; all by default")
    parser.add_argument("--preset", default="Ti/16", help="model of the parts devices, fsdp and start")
    parser.add_argument("--image-size", type=int, default=64, help="side of the square image, px")
    parser.add_argument("--length", type=int, default=32, help="text tokens")
    parser.add_argument("--batch", type=int, default=256, help="pairs per step, over all devices")
    parser.add_argument("--rounds", type=int, default=3, help="measured steps, starts and conversions, in turns")
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 1000, 10_000], help="steps done before a resume")
    parser.add_argument("--rows", type=int, default=4000, help="rows of the conversion")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="worker processes of the conversion")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--launched", help=argparse.SUPPRESS)
    return parser.parse_args()


# Steps on more devices


def step_on(options: argparse.Namespace, *, count: int, fsdp: int) -> tuple[Callable[[], float], Any]:
    """A step on ``count`` devices as a function that does it once and returns its seconds, and its memory."""
    import jax
    import jax.numpy as jnp
    import jax.random as jr

    from clipa_eqx.device_memory import memory_of
    from clipa_eqx.durations import RunLength
    from clipa_eqx.models.clip import abstract_clip
    from clipa_eqx.models.presets import preset
    from clipa_eqx.optim import OptimConfig, make_optimizer
    from clipa_eqx.precision import Precision
    from clipa_eqx.sharding import MeshConfig, batch_sharding, make_mesh, shardings_for
    from clipa_eqx.training.state import abstract_state, init_state
    from clipa_eqx.training.step import make_train_step

    config = preset(options.preset, image_size=options.image_size, length=options.length)
    mesh = make_mesh(MeshConfig(fsdp=fsdp), devices=jax.devices()[:count])
    optimizer = make_optimizer(OptimConfig(peak_lr=1e-4), abstract_clip(config), RunLength(total_steps=1000))
    abstract = abstract_state(config, optimizer)
    step = make_train_step(optimizer, abstract=abstract, mesh=mesh, seed=0, precision=Precision())
    batch = {
        "image": jnp.full((options.batch, options.image_size, options.image_size, 3), 127, jnp.uint8),
        "tokens": jr.randint(jr.key(2), (options.batch, options.length), 0, config.text.vocab),
    }
    with jax.set_mesh(mesh):
        shardings = shardings_for(abstract, mesh)
        batch = jax.device_put(batch, batch_sharding(mesh))
        compiled = step.lower(abstract, batch).compile()
        held: list[Any] = [jax.jit(lambda key: init_state(config, optimizer, key=key), out_shardings=shardings)]
        held[0] = held[0](jr.key(0))

    def once() -> float:
        since = time.perf_counter()
        with jax.set_mesh(mesh):
            held[0], metrics = compiled(held[0], batch)
        jax.block_until_ready((held[0], metrics))
        return time.perf_counter() - since

    once()
    return once, memory_of(compiled)


def devices(options: argparse.Namespace) -> Iterator[str]:
    """Images/s over all devices, each mesh in turns; the best of the rounds counts.

    Each device of the axis data updates all parameters, so on simulated devices the update is repeated. The axis fsdp
    splits it.
    """
    meshes = [("data", count) for count in DEVICES] + [("fsdp", DEVICES[-1])]
    steps = [step_on(options, count=count, fsdp=count if axis == "fsdp" else 1)[0] for axis, count in meshes]
    seconds: list[list[float]] = [[] for _ in meshes]
    for _ in range(options.rounds):
        for step, found in zip(steps, seconds, strict=True):
            found.append(step())
    first = options.batch / min(seconds[0])
    yield f"{options.preset}, {options.image_size} px, {options.length} tokens, batch {options.batch}, {cpus()}"
    for (axis, count), found in zip(meshes, seconds, strict=True):
        rate = options.batch / min(found)
        yield f"{axis} {count}: {rate:7.1f} images/s in all, {100 * rate / first:5.1f} % of one device"


def fsdp(options: argparse.Namespace) -> Iterator[str]:
    """Memory of each device as the compiler plans it, and images/s, over the parts of fsdp."""
    yield f"{options.preset}, {options.image_size} px, {options.length} tokens, batch {options.batch}, 8 devices"
    for parts in DEVICES:
        step, memory = step_on(options, count=DEVICES[-1], fsdp=parts)
        rate = options.batch / min(step() for _ in range(options.rounds))
        yield (
            f"fsdp {parts}: {memory.arguments / 2**20:7.1f} MiB of state and batch per device, "
            f"{memory.temporary / 2**20:7.1f} MiB temporary, {rate:6.1f} images/s in all"
        )


# Resuming after more steps


def resume(options: argparse.Namespace) -> Iterator[str]:
    """Seconds from the call of ``train`` to its first step, without compiling, in one run that is stopped again."""
    import jax

    from clipa_eqx.durations import Duration
    from clipa_eqx.training.loop import train
    from clipa_eqx.training.stopping import Interrupted

    logging.disable(logging.WARNING)
    compiled: list[Any] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pairs(folder / "records", count=512, side=64)
        config = small_run(folder / "records", batch=8, duration=Duration(steps=max(options.steps) + 100))
        yield "a tiny model, a line of the log each 10 steps, an overwritten checkpoint at each stop; not compiling"

        def seconds_to_first_step(run: str, *, stop_after: int) -> float:
            begun: list[float] = []
            since = time.perf_counter()
            with (
                contextlib.suppress(Interrupted),
                open(os.devnull, "w") as nothing,
                contextlib.redirect_stderr(nothing),
            ):
                compiler = stopping_step(compiled, begun, stop_after=stop_after)
                train(config, folder / run, devices=jax.devices()[:1], compiler=compiler)
            return begun[0] - since

        for done in (1, 2):  # compiles everything, also what only a resumed run needs
            seconds_to_first_step("warm-up", stop_after=done)
        done = 0
        for stop in options.steps:
            seconds = seconds_to_first_step("run", stop_after=stop - done)
            remark = "" if done else ", of which most is compiling the initialization"
            yield f"{done:7,d} steps done: {seconds:5.2f} s to the next step{remark}"
            done = stop
        seconds = min(seconds_to_first_step("run", stop_after=1) for _ in range(options.rounds))
        yield f"{done:7,d} steps done: {seconds:5.2f} s to the next step, best of {options.rounds} starts"


def stopping_step(compiled: list[Any], begun: list[float], *, stop_after: int) -> Any:
    """A compiler that compiles once, notes when each step begins, and requests a stop in a step."""
    from clipa_eqx.training.compiled_step import compile_step

    def compiler(*arguments: Any) -> Any:
        if not compiled:
            compiled.append(compile_step(*arguments))

        def step(state: Any, batch: Any) -> Any:
            begun.append(time.perf_counter())
            if len(begun) == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            return compiled[0](state, batch)

        return step

    return compiler


def small_run(records: Path, *, batch: int, duration: Any) -> Any:
    """A run of a model whose step takes milliseconds."""
    from clipa_eqx.data.prefetch import StreamConfig
    from clipa_eqx.models.presets import Size, Variant, from_variant
    from clipa_eqx.recipes import small_stage

    tower = Size(width=32, depth=1, mlp_dim=64, heads=2)
    model = from_variant(Variant(tower, tower, 32), patch_size=16, image_size=32, length=8)
    config = small_stage(model, records=str(records), batch_size=batch, duration=duration, peak_lr=1e-4)
    data = dataclasses.replace(config.data, stream=StreamConfig(threads=1, prefetch_batches=2))
    never = dataclasses.replace(config.checkpoint, every_steps=10**6)
    return dataclasses.replace(config, data=data, checkpoint=never, log_every_steps=10)


# Ingest


def ingest(options: argparse.Namespace) -> Iterator[str]:
    """Rows/s of a conversion of tars of JPEGs, for each number of workers in turns; the best of the rounds counts."""
    from conversion.records.convert import convert
    from conversion.records.options import IngestOptions

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tars(folder / "source", rows=options.rows)
        yield f"{options.rows:,} rows in 8 tars, JPEGs of 512x384 px, each decoded to check it, {cpus()}"
        seconds: dict[int, list[float]] = {workers: [] for workers in options.workers}
        for turn in range(options.rounds):
            for workers, found in seconds.items():
                target, since = folder / f"{turn}-{workers}", time.perf_counter()
                with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
                    convert("webdataset", str(folder / "source"), str(target), options=IngestOptions(), workers=workers)
                found.append(time.perf_counter() - since)
        first = options.rows / min(seconds[options.workers[0]])
        for workers, found in seconds.items():
            rate = options.rows / min(found)
            yield f"{workers} workers: {rate:7.0f} rows/s, {rate / first:4.2f} times those of {options.workers[0]}"


# A start


def start(options: argparse.Namespace) -> Iterator[str]:
    """Seconds of each phase of a start, from the launch of Python to the end of the first step; medians."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pairs(folder / "records", count=2048, side=256)
        (folder / "config.py").write_text(
            "from clipa_eqx import Duration, preset, small_stage\n\n\ndef config():\n"
            f"    model = preset({options.preset!r}, image_size={options.image_size}, length={options.length})\n"
            f"    return small_stage(model, records={str(folder / 'records')!r}, batch_size={options.batch}, "
            "duration=Duration(steps=1000), peak_lr=1e-4)\n"
        )
        runs: list[dict[str, float]] = []
        for _ in range(options.rounds):
            command = [sys.executable, __file__, "--child", str(folder / "config.py"), "--launched", str(time.time())]
            environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        yield f"{options.preset}, {options.image_size} px, {options.length} tokens, batch {options.batch}, {cpus()}"
        for phase in runs[0]:
            yield f"{phase:24}{np.median([one[phase] for one in runs]):6.2f} s"
        yield f"{'in all':24}{np.median([sum(one.values()) for one in runs]):6.2f} s"


def start_phases(config_file: Path, launched: float) -> dict[str, float]:
    """The phases of this process, in the order of the loop."""
    phases: dict[str, float] = {}
    last = [launched]

    def over(name: str) -> None:
        now = time.time()
        phases[name], last[0] = now - last[0], now

    import jax

    from clipa_eqx.programs import training_run
    from clipa_eqx.training.compiled_step import compile_step
    from clipa_eqx.training.device_batches import DeviceBatches
    from clipa_eqx.training.inputs import train_batches
    from clipa_eqx.training.preparation import prepare
    from clipa_eqx.training.start import first_state

    over("Python and imports")
    config = training_run.resolve_config(config_file, [], program="growth")
    over("config")
    run = prepare(config, config_file.parent / "run", devices=jax.devices())
    over("data and other checks")
    with jax.set_mesh(run.mesh):
        step = compile_step(config, run.optimizer, run.abstract, run.mesh)
        over("compiling the step")
        vocab = run.tokenizer.vocab_sha256
        state = first_state(config, run.optimizer, abstract=run.abstract, mesh=run.mesh, vocab_sha256=vocab)
        jax.block_until_ready(state)
        over("first state")
        with train_batches(config, run.mixture, run.tokenizer, start_step=0, mesh=run.mesh) as rows:
            batch = DeviceBatches(rows, run.mesh).take()
            over("first batch")
            jax.block_until_ready(step(state, batch.arrays))
            over("first step")
    return phases


# Data


def write_pairs(folder: Path, *, count: int, side: int) -> None:
    """Write records of 64 different smooth JPEGs with captions."""
    from clipa_eqx.data.array_record_writer import write_records
    from clipa_eqx.data.records import Record

    images = [smooth_jpeg(seed, width=side, height=side) for seed in range(64)]
    captions = ("an old wooden boat on the shore", "a red bicycle in front of a house", "two dogs in the snow")
    write_records((Record(key=str(i), image=images[i % 64], captions=(captions[i % 3],)) for i in range(count)), folder)


def write_tars(folder: Path, *, rows: int) -> None:
    """Write tars of JPEGs with captions, as webdatasets."""
    images = [smooth_jpeg(seed, width=512, height=384) for seed in range(64)]
    folder.mkdir()
    for shard in range(8):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in range(shard, rows, 8):
                for suffix, content in (("jpg", images[row % 64]), ("txt", f"row {row}".encode())):
                    member = tarfile.TarInfo(f"{row:08d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def smooth_jpeg(seed: int, *, width: int, height: int) -> bytes:
    """Noise at several scales, which compresses about as well as a photograph."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 3
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def cpus() -> str:
    """Processors of this machine, as text."""
    return f"{len(os.sched_getaffinity(0))} processors"


if __name__ == "__main__":
    main()
