"""Cost of the training loop: seconds per step of a run, next to the same compiled step alone, in turns.

The run reads records, sends batches, logs, and writes its page, as any run. Its metrics give the work of the host per
step, which costs nothing as long as the devices have work.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from growth import write_pairs

from clipa_eqx.durations import Duration
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.models.presets import preset
from clipa_eqx.recipes import small_stage
from clipa_eqx.training.compiled_step import compile_step
from clipa_eqx.training.loop import train
from clipa_eqx.training.metrics import read_metrics


def main() -> None:
    options = parse_options()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pairs(folder / "records", count=2048, side=256)
        config = run_config(options, folder / "records")
        measured = Measured(steps=options.steps)
        loops: list[float] = []
        alone: list[float] = []
        hosts: list[float] = []
        for turn in range(options.rounds):
            with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
                train(config, folder / str(turn), devices=jax.devices()[:1], compiler=measured.compiler)
            # The first lines have the start.
            lines = [line for line in read_metrics(folder / str(turn) / "metrics.jsonl") if line["step"] > 2]
            loops.append(statistics.median(line["seconds_per_step"] for line in lines))
            hosts.append(statistics.median(line["host_seconds_per_step"] for line in lines))
            alone.append(measured.alone())
        print(f"{options.preset}, {options.image_size} px, {options.length} tokens, batch {options.batch}, float32")
        print(f"{options.steps} steps, {options.rounds} rounds, in turns; medians")
        loop, step, host = (statistics.median(found) for found in (loops, alone, hosts))
        print(f"step alone              {step:8.4f} s")
        print(f"step in a run           {loop:8.4f} s  ({100 * (loop / step - 1):+.1f} %)")
        print(f"work of the host        {1000 * host:8.2f} ms per step, {100 * host / step:.2f} % of the step")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--preset", default="Ti/16")
    parser.add_argument("--image-size", type=int, default=64, help="side of the square image, px")
    parser.add_argument("--length", type=int, default=32, help="text tokens")
    parser.add_argument("--batch", type=int, default=24, help="pairs per step")
    parser.add_argument("--steps", type=int, default=20, help="steps of each run")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def run_config(options: argparse.Namespace, records: Path) -> ExperimentConfig:
    """A run that logs every 5 steps."""
    model = preset(options.preset, image_size=options.image_size, length=options.length)
    steps = Duration(steps=options.steps)
    config = small_stage(model, records=str(records), batch_size=options.batch, duration=steps, peak_lr=1e-4)
    return dataclasses.replace(config, log_every_steps=5)


class Measured:
    """A step that is compiled once, and can be repeated alone on the last batch of a run."""

    def __init__(self, *, steps: int) -> None:
        self._steps = steps
        self._compiled: Any = None
        self._last: Any = None

    def compiler(self, config: Any, optimizer: Any, abstract: Any, mesh: Any) -> Any:
        """The compiler for ``train``."""
        if self._compiled is None:
            self._compiled = compile_step(config, optimizer, abstract, mesh)

        def step(state: Any, batch: Any) -> Any:
            found = self._compiled(state, batch)
            self._last = mesh, found[0], batch
            return found

        return step

    def alone(self) -> float:
        """Seconds per step of the same number of steps, without reading data or numbers."""
        mesh, state, batch = self._last
        # Training has written and released the state of its last step; the step donates what it gets.
        state = jax.tree.map(lambda leaf: leaf.copy(), state)
        jax.block_until_ready(state)
        since = time.perf_counter()
        with jax.set_mesh(mesh):
            for _ in range(self._steps):
                state, _ = self._compiled(state, batch)
        jax.block_until_ready(state)
        return (time.perf_counter() - since) / self._steps


if __name__ == "__main__":
    main()
