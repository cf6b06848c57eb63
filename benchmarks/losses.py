"""Time and compiled memory of the algorithms of the loss, forward and backward, side by side on the same devices.

    python benchmarks/losses.py --batch 4096 --embed 512 --devices 8

On a machine with a CPU only, the devices share its cores: times then show the work, not the transfers.
"""

import argparse
import json
import time
from typing import Any, get_args

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.sharding import Mesh

from clipa_eqx.losses.config import LossAlgorithm, LossConfig, LossKind
from clipa_eqx.losses.contrastive import contrastive_loss
from clipa_eqx.sharding import MeshConfig, batch_sharding, make_mesh


def measure(config: LossConfig, mesh: Mesh, options: argparse.Namespace) -> dict[str, Any]:
    """Compile loss and gradients of one algorithm, and time them."""
    bias = jnp.asarray(-10.0) if config.kind == "sigmoid" else None

    def loss(image: jax.Array, text: jax.Array) -> jax.Array:
        return contrastive_loss(
            image, text, log_temperature=jnp.log(jnp.asarray(10.0)), bias=bias, config=config, mesh=mesh
        ).loss

    keys = jr.split(jr.key(0))
    rows = [jr.normal(key, (options.batch, options.embed)) for key in keys]
    rows = [jax.device_put(x / jnp.linalg.norm(x, axis=1, keepdims=True), batch_sharding(mesh)) for x in rows]
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*rows).compile()
    value, _ = jax.block_until_ready(compiled(*rows))
    since = time.perf_counter()
    for _ in range(options.steps):
        jax.block_until_ready(compiled(*rows))
    memory: Any = compiled.memory_analysis()
    return {
        "kind": config.kind,
        "algorithm": config.algorithm,
        "loss": float(value),
        "milliseconds": round(1000 * (time.perf_counter() - since) / options.steps, 2),
        "temporary_mib_per_device": round(memory.temp_size_in_bytes / 2**20, 2),
    }


def main() -> None:
    """Print one line of JSON per kind and algorithm."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--embed", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--devices", type=int, default=8, help="with a CPU only, so many are simulated")
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", options.devices)
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[: options.devices])
    for kind in get_args(LossKind):
        for algorithm in get_args(LossAlgorithm):
            config = LossConfig(kind=kind, algorithm=algorithm, chunk=options.chunk)
            print(json.dumps(measure(config, mesh, options)), flush=True)


if __name__ == "__main__":
    main()
