"""Cost of checksums: saving, restoring and loading with and without them, both sides in one run."""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from clipa_eqx.checksums import leaf_checksums
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.durations import Duration, RunLength
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.models.presets import PRESETS, preset
from clipa_eqx.optim import OptimConfig, make_optimizer
from clipa_eqx.saved.model import load_model, save_model
from clipa_eqx.schedules import Cosine
from clipa_eqx.sharding import MeshConfig, make_mesh, shardings_for
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.state import TrainState, abstract_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--preset", default="B/16", help=f"one of {', '.join(PRESETS)}; B/16 has 1.8 GB of state")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side; the median counts")
    parser.add_argument("--scratch", type=Path, help="folder with space for twice the state; else /tmp")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        result = measure(options.preset, options.image_size, Path(folder), repeats=options.repeats)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"{options.preset} at {options.image_size} px: {result['state_bytes'] / 1e9:.2f} GB of state, {jax.devices()}"
    )
    print(f"first checksums, with compiling: {result['first_hash_s']:6.2f} s")
    for what in ("hash", "save", "restore", "load_model"):
        alone, ratio = result.get(f"{what}_without_s"), result.get(f"{what}_ratio")
        rest = "" if alone is None else f" with, {alone:6.2f} s without: {ratio:.2f} times as long"
        print(f"{what + ':':12} {result[f'{what}_s']:6.2f} s{rest}")


def measure(name: str, image_size: int, folder: Path, *, repeats: int) -> dict[str, float]:
    """All numbers of one run. Sides alternate, so that the disk's mood is the same for both.

    A save is timed until it is committed; the part during which a run waits for it is shorter.
    """
    state, abstract, mesh = random_state(name, image_size)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    since = time.perf_counter()
    leaf_checksums(state)
    result = {"state_bytes": float(size), "first_hash_s": time.perf_counter() - since}
    result["hash_s"] = statistics.median(timed(lambda: leaf_checksums(state)) for _ in range(repeats))
    seconds: dict[str, list[float]] = {}

    def record(side: str, *, checksums: bool) -> None:
        with Checkpoints(folder / side, keep=1, checksums=checksums) as checkpoints:
            saved = timed(lambda: save(checkpoints, state))
            restored = timed(lambda: jax.block_until_ready(checkpoints.restore(abstract, mesh, step=1)))
        shutil.rmtree(folder / side)
        loaded = timed(lambda: jax.block_until_ready(load_model(model, verify=checksums).model))
        for what, one in (("save", saved), ("restore", restored), ("load_model", loaded)):
            seconds.setdefault(f"{what}_{side}", []).append(one)

    model = folder / "model"
    save_model(
        model,
        state.model,
        tokenizer=Tokenizer.bert(),
        preprocess=EvalImageConfig(size=(image_size, image_size)),
        provenance={},
    )
    for _ in range(repeats):
        record("s", checksums=True)
        record("without_s", checksums=False)
    result |= {what: statistics.median(found) for what, found in seconds.items()}
    for what in ("save", "restore", "load_model"):
        result[f"{what}_ratio"] = result[f"{what}_s"] / result[f"{what}_without_s"]
    return result


def save(checkpoints: Checkpoints, state: TrainState) -> None:
    checkpoints.save(state, step=1, about={})
    checkpoints.wait()


def timed(run: Callable[[], object]) -> float:
    since = time.perf_counter()
    run()
    return time.perf_counter() - since


def random_state(name: str, image_size: int) -> tuple[TrainState, TrainState, Any]:
    """A state of random values, spread over all devices, and its abstract twin."""
    config = preset(name, image_size=image_size)
    mesh = make_mesh(MeshConfig(fsdp=len(jax.devices())))
    length = RunLength.of(Duration(steps=100))
    optim = OptimConfig(peak_lr=1e-3, schedules=((".*", Cosine(warmup=Duration(steps=10))),))
    abstract = abstract_state(config, make_optimizer(optim, abstract_clip(config), length))
    leaves, structure = jax.tree.flatten(abstract)

    def fill(key: jax.Array) -> TrainState:
        keys = jax.random.split(key, len(leaves))
        values = [jax.random.uniform(k, x.shape).astype(x.dtype) for k, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, values)

    shardings = shardings_for(abstract, mesh)
    state = jax.jit(fill, out_shardings=shardings)(jax.random.key(0))
    return jax.tree.map(jnp.asarray, state), abstract, mesh


if __name__ == "__main__":
    main()
