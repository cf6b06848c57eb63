"""Our side of ``gpu.py``: the largest power-of-two batch whose training step fits on one device, and its time."""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from clipa_eqx.device_memory import ProgramMemory, device_limit, memory_of
from clipa_eqx.durations import RunLength
from clipa_eqx.errors import is_out_of_memory
from clipa_eqx.models.clip import CLIPConfig, abstract_clip
from clipa_eqx.models.kernels import Kernels, choose_kernels
from clipa_eqx.models.presets import preset
from clipa_eqx.optim import OptimConfig, make_optimizer
from clipa_eqx.precision import Precision
from clipa_eqx.sharding import MeshConfig, batch_sharding, make_mesh, shardings_for
from clipa_eqx.training.state import abstract_state, init_state
from clipa_eqx.training.step import make_train_step
from clipa_eqx.trees import count_params


def main() -> None:
    options = parse_options()
    config = config_of(options)
    kernels = choose_kernels(options.attention, config, compute="bfloat16", device=jax.devices()[0])
    program = Program(config, kernels)
    batch, compiled = largest_batch(program, options)
    print("READY", flush=True)
    sys.stdin.readline()
    peak = product_peak(options.product)
    while True:
        try:
            seconds = program.time(compiled, batch)
            break
        except Exception as error:
            if not is_out_of_memory(error) or batch == 1:
                raise
        batch //= 2
        compiled = program.compile(batch)
    stats: Any = jax.devices()[0].memory_stats()
    needed = memory_of(compiled)
    row = {
        "batch": batch,
        "seconds": seconds,
        "memory": stats["peak_bytes_in_use"] if stats else needed.total if needed else 0,
        "note": f"attention {kernels.image}/{kernels.text}, recomputed {options.recompute}",
        "peak": peak,
        "device": f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
    }
    print("ROW " + json.dumps(row), flush=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="Ti/16")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=8)
    parser.add_argument("--start", type=int, default=64, help="batch of the first try")
    parser.add_argument("--most", type=int, default=2**16, help="largest batch")
    parser.add_argument("--recompute", choices=("none", "image", "both"), default="none")
    parser.add_argument("--attention", choices=("auto", "cudnn", "xla"), default="auto")
    parser.add_argument("--product", type=int, default=8192, help="side of the matrices of the peak")
    return parser.parse_args()


def config_of(options: argparse.Namespace) -> CLIPConfig:
    config = preset(options.preset, image_size=options.image_size, length=options.length)
    image, text = config.image, config.text
    if options.recompute in ("image", "both"):
        image = replace(image, blocks=replace(image.blocks, remat="full"))
    if options.recompute == "both":
        text = replace(text, blocks=replace(text.blocks, remat="full"))
    return replace(config, image=image, text=text)


class Program:
    """The training step of a model on the first device."""

    def __init__(self, config: CLIPConfig, kernels: Kernels) -> None:
        self.config = config
        self.mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
        self.optimizer = make_optimizer(OptimConfig(peak_lr=1e-4), abstract_clip(config), RunLength(total_steps=1000))
        self.abstract = abstract_state(config, self.optimizer)
        self.step = make_train_step(
            self.optimizer,
            abstract=self.abstract,
            mesh=self.mesh,
            seed=0,
            precision=Precision(compute="bfloat16"),
            kernels=kernels,
        )

    def compile(self, batch: int) -> Any:
        """The compiled step."""
        size = self.config.image.image_size
        shapes = {
            "image": jax.ShapeDtypeStruct((batch, *size, 3), np.uint8),
            "tokens": jax.ShapeDtypeStruct((batch, self.config.text.length), np.int32),
        }
        with jax.set_mesh(self.mesh):
            return self.step.lower(self.abstract, shapes).compile()

    def time(self, compiled: Any, batch: int) -> float:
        """Seconds of a step: the host starts all steps and waits for the last one only."""
        with jax.set_mesh(self.mesh):
            shardings = shardings_for(self.abstract, self.mesh)
            init = jax.jit(lambda key: init_state(self.config, self.optimizer, key=key), out_shardings=shardings)
            state = init(jr.key(0))
            rows = jax.device_put(self._rows(batch), batch_sharding(self.mesh))
            with jax.transfer_guard("disallow"):
                state, once = _timed(compiled, state, rows, steps=2)
                # One to two seconds: longer than what starting the steps takes, short for the program.
                state, once = _timed(compiled, state, rows, steps=2)
                _, seconds = _timed(compiled, state, rows, steps=max(3, min(50, int(2.0 / once))))
        return seconds

    def _rows(self, batch: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng(0)
        text = self.config.text
        return {
            "image": random.integers(0, 256, (batch, *self.config.image.image_size, 3), dtype=np.uint8),
            "tokens": random.integers(0, text.vocab, (batch, text.length), dtype=np.int32),
        }


def _timed(compiled: Any, state: Any, rows: Mapping[str, Array], *, steps: int) -> tuple[Any, float]:
    since = time.perf_counter()
    metrics: Any = None
    for _ in range(steps):
        state, metrics = compiled(state, rows)
    jax.block_until_ready(metrics)
    return state, (time.perf_counter() - since) / steps


def largest_batch(program: Program, options: argparse.Namespace) -> tuple[int, Any]:
    """The largest power of two whose step fits, and that step; found by compiling, not by running."""
    batch, limit = options.start, device_limit(jax.devices()[0])
    compiled = program.compile(batch)
    is_smaller = False
    while True:
        needed = memory_of(compiled)
        if needed is None or limit is None:
            return batch, compiled
        if needed.total > limit:
            if batch == 1:
                return batch, compiled
            batch, is_smaller = batch // 2, True
            compiled = program.compile(batch)
        elif not is_smaller and 2 * batch <= options.most and _doubled(needed, program) <= limit:
            batch *= 2
            compiled = program.compile(batch)
        else:
            return batch, compiled


def _doubled(needed: ProgramMemory, program: Program) -> int:
    """Bytes of the step for twice the batch: gradients do not grow."""
    gradients = 4 * count_params(program.abstract.model)
    return needed.total + max(needed.temporary - gradients, 0)


def product_peak(side: int) -> float:
    """Operations per second of the product of two square bfloat16 matrices with normal entries, best of five."""
    matrix = jr.normal(jr.key(0), (side, side)).astype(jnp.bfloat16)
    product = jax.jit(lambda x, y: x @ y)
    jax.block_until_ready(product(matrix, matrix))
    seconds: list[float] = []
    for _ in range(5):
        since = time.perf_counter()
        out = matrix
        for _ in range(10):
            out = product(matrix, matrix)
        jax.block_until_ready(out)
        seconds.append((time.perf_counter() - since) / 10)
    return 2 * side**3 / min(seconds)


if __name__ == "__main__":
    main()
