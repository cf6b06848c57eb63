"""Operations per second of a training step on one device, next to its matrix-product peak in the same run.

With ``--against``, next to the step of open_clip (extra ``open-clip``) or of the reference, on the CPU in a process of
its own: both sides make two steps in turns, and the ratio is that of the second ones. Our side has huge pages as in
``train.py``.
"""

import argparse
import dataclasses
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from clipa_eqx.durations import RunLength
from clipa_eqx.flops import step_flops
from clipa_eqx.huge_pages import TUNABLES, restart_with_huge_pages
from clipa_eqx.models.blocks import Remat
from clipa_eqx.models.clip import CLIPConfig, abstract_clip
from clipa_eqx.models.presets import PRESETS, preset
from clipa_eqx.optim import OptimConfig, make_optimizer
from clipa_eqx.precision import Precision
from clipa_eqx.sharding import MeshConfig, batch_sharding, make_mesh, shardings_for
from clipa_eqx.training.state import TrainState, abstract_state, init_state
from clipa_eqx.training.step import TrainStep, make_train_step
from clipa_eqx.trees import count_params

SIDES = ("open_clip", "reference")


def main() -> None:
    restart_with_huge_pages()
    options = parse_options()
    config = preset(options.preset, image_size=options.image_size, length=options.length)
    if options.remat != "none":
        config = with_remat(config, options.remat)
    step, state, batch, compile_seconds = prepare(config, options)
    if options.against:
        compare(step, state, batch, options)
        return
    step_seconds: list[float] = []
    product_seconds: list[float] = []
    product, matrix = prepare_product(options.product, precision=options.precision)
    state, _ = step(state, batch)
    # In turns, so that other load on the machine affects both alike. The best of each counts.
    for _ in range(options.rounds):
        product_seconds.append(seconds(lambda: product(matrix)))
        since = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        step_seconds.append(time.perf_counter() - since)
    flops = step_flops(config, batch_size=options.batch)
    achieved, peak = flops.total / min(step_seconds), 2 * options.product**3 / min(product_seconds)
    rows = [
        ("device", f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}"),
        ("model", f"{options.preset}, {options.image_size} px, {options.length} tokens, batch {options.batch}"),
        ("arithmetic", f"{options.precision}, remat {options.remat}"),
        ("parameters", f"{count_params(state.model):,}"),
        ("compile time, blocks scanned", f"{compile_seconds:.1f} s"),
        (
            "operations per step",
            f"{flops.total / 1e9:.1f} GFLOP ({share(flops.image, flops.total)} in the image tower)",
        ),
        ("step, best of rounds", f"{min(step_seconds):.3f} s ({options.batch / min(step_seconds):.1f} pairs/s)"),
        ("step, achieved", f"{achieved / 1e9:.1f} GFLOP/s"),
        (f"matrix product of {options.product}", f"{peak / 1e9:.1f} GFLOP/s"),
        ("achieved / matrix product", share(achieved, peak)),
    ]
    for name, value in rows:
        print(f"{name:30}{value}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="B/16")
    parser.add_argument("--image-size", type=int, default=64, help="side of the square image, px")
    parser.add_argument("--length", type=int, default=32, help="text tokens")
    parser.add_argument("--batch", type=int, default=64, help="pairs per step")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="dots")
    parser.add_argument("--product", type=int, default=3072, help="side of the matrices of the peak")
    parser.add_argument("--against", choices=SIDES, help="compare with this step, on the CPU in float32")
    parser.add_argument("--rounds", type=int, default=3, help="measured steps and products, in turns")
    return parser.parse_args()


def with_remat(config: CLIPConfig, remat: Remat) -> CLIPConfig:
    """The config with the same rematerialization in both towers."""
    image, text = (
        dataclasses.replace(tower, blocks=dataclasses.replace(tower.blocks, remat=remat))
        for tower in (config.image, config.text)
    )
    return dataclasses.replace(config, image=image, text=text)


def compare(step: TrainStep, state: TrainState, batch: Mapping[str, Array], options: argparse.Namespace) -> None:
    """Print both sides' seconds and peak memory, step by step in turns, and the ratio of neighboring steps."""
    sizes = {"preset": options.preset, "image-size": options.image_size, "length": options.length}
    flags = [text for name, value in {**sizes, "batch": options.batch}.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", f"benchmarks.step_{options.against}", *flags]
    # The other side has its own defaults, as its users do.
    variables = {name: value for name, value in os.environ.items() if name != TUNABLES}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        ready = other.stdout.readline()
        if not ready.startswith("ready"):
            raise SystemExit(f"{' '.join(command)} did not start; --against open_clip needs the extra open-clip")
        version = ready.removeprefix("ready").strip()
        product, matrix = prepare_product(options.product, precision="float32")
        rate = 2e-9 * options.product**3 / min(seconds(lambda: product(matrix)) for _ in range(5))
        print(f"ours: jax {jax.__version__}, remat {options.remat}, products {rate:.0f} GFLOP/s")
        print(f"{options.against}: {version}")
        ratios: list[float] = []
        peak = 0.0
        for number in range(options.rounds + 1):
            ours, theirs = 0.0, 0.0
            # Two steps per turn, of which the second counts, as in training: a system may take memory back from a
            # process that waits, and the first step then waits for it.
            for _ in range(2):
                since = time.perf_counter()
                state, metrics = step(state, batch)
                jax.block_until_ready(metrics)
                ours = time.perf_counter() - since
            for _ in range(2):
                print("step", file=other.stdin, flush=True)
                theirs, peak = map(float, other.stdout.readline().split())
            if number:  # the first turn of both is a warm-up
                ratios.append(theirs / ours)
                print(f"ours {ours:.2f} s, {options.against} {theirs:.2f} s, ratio {ratios[-1]:.2f}", flush=True)
        other.stdin.close()
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"speed ours / {options.against}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"peak memory of the process: ours {mine:.2f} GiB, {options.against} {peak:.2f} GiB")


def prepare(
    config: CLIPConfig, options: argparse.Namespace
) -> tuple[TrainStep, TrainState, Mapping[str, Array], float]:
    """The compiled step, a state, a batch, and the seconds of tracing and compiling."""
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    optimizer = make_optimizer(OptimConfig(peak_lr=1e-4), abstract_clip(config), RunLength(total_steps=1000))
    abstract = abstract_state(config, optimizer)
    step = make_train_step(
        optimizer, abstract=abstract, mesh=mesh, seed=0, precision=Precision(compute=options.precision)
    )
    with jax.set_mesh(mesh):
        shardings = shardings_for(abstract, mesh)
        state = jax.jit(lambda key: init_state(config, optimizer, key=key), out_shardings=shardings)(jr.key(0))
        size = (options.image_size, options.image_size)
        batch = {
            "image": jr.randint(jr.key(1), (options.batch, *size, 3), 0, 256).astype(jnp.uint8),
            "tokens": jr.randint(jr.key(2), (options.batch, options.length), 0, config.text.vocab),
        }
        batch = jax.device_put(batch, batch_sharding(mesh))
        since = time.perf_counter()
        compiled = step.lower(abstract, batch).compile()
        return compiled, state, batch, time.perf_counter() - since


def prepare_product(side: int, *, precision: str) -> tuple[Callable[[Array], Array], Float[Array, "side side"]]:
    """A compiled product of a square matrix with itself."""
    matrix = jr.normal(jr.key(0), (side, side)).astype(precision)
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(matrix))
    return product, matrix


def seconds(work: Callable[[], Array]) -> float:
    """Seconds until the result of a computation is ready."""
    since = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - since


def share(part: float, whole: float) -> str:
    """A share in percent, as text."""
    return f"{100 * part / whole:.0f} %"


if __name__ == "__main__":
    main()
