"""The real training step of a config, compiled for a slice: memory by purpose, collectives, seconds of compiling."""

import re
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from clipa_eqx.device_memory import ProgramMemory, memory_of
from clipa_eqx.durations import RunLength
from clipa_eqx.errors import ConfigError, is_out_of_memory
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.planning.program_text import Collective, collectives, loops
from clipa_eqx.planning.slices import Slice
from clipa_eqx.sharding import batch_parts, check_batch, check_micro_batch, make_mesh, shardings_for
from clipa_eqx.training.compiled_step import lower_step
from clipa_eqx.training.shapes import optimizer_and_shapes
from clipa_eqx.training.state import TrainState


class Prepared(NamedTuple):
    """A config on a slice, before anything is compiled.

    Attributes:
        total_steps: steps of the run.
        state: bytes of parameters, optimizer state and average per device.
    """

    config: ExperimentConfig
    mesh: jax.sharding.Mesh
    total_steps: int
    optimizer: Any
    abstract: TrainState
    state: "StateBytes"

    @property
    def rows(self) -> int:
        """Pairs whose activations a device has at once."""
        pairs = min(self.config.micro_batch or self.config.batch_size, self.config.batch_size)
        return pairs // batch_parts(self.mesh)


class StateBytes(NamedTuple):
    """Bytes per device of the parts of a training state, without padding; ``average`` is 0 without ``ema``."""

    parameters: int
    optimizer: int
    average: int


class Compiled(NamedTuple):
    """Report of the compiler.

    Attributes:
        memory: bytes per device; None if the compiler refused and did not say how much it needs.
        limit: bytes that a program may use on a device, if the compiler said so when it refused.
        activations: bytes per device of the values that the blocks keep for the backward pass, without padding; a
            part of the temporaries.
        collectives: None if the compiler refused.
        seconds: time of compiling.
        cpu_seconds: the same as processor time of this process, which other programs change less.
        text: the optimized program; empty if the compiler refused.
    """

    memory: ProgramMemory | None
    limit: int | None
    activations: int
    collectives: tuple[Collective, ...] | None
    seconds: float
    cpu_seconds: float
    text: str

    @property
    def is_refused(self) -> bool:
        """Whether the compiler found no way to fit the program into the memory of a device."""
        return self.collectives is None


def prepare(config: ExperimentConfig, target: Slice, *, records: int) -> Prepared:
    """Check a config against a slice.

    Args:
        records: pairs of the data, for durations in epochs.

    Raises:
        ShardingError: the mesh does not fit the slice, or does not divide the batch.
    """
    mesh = make_mesh(config.mesh, devices=target.devices)
    check_batch(config.batch_size, mesh)
    if config.micro_batch is not None:
        check_micro_batch(config.micro_batch, mesh)
    run = RunLength.of(config.duration, batch_size=config.batch_size, data_size=records)
    optimizer, abstract = optimizer_and_shapes(config, run)
    return Prepared(config, mesh, run.total_steps, optimizer, abstract, state_bytes(abstract, mesh))


def state_bytes(abstract: TrainState, mesh: jax.sharding.Mesh) -> StateBytes:
    """Bytes per device of a training state."""
    shardings = shardings_for(abstract, mesh)

    def total(tree: Any, placed: Any) -> int:
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(placed), strict=True)
        return sum(int(np.prod(where.shard_shape(x.shape), dtype=np.int64)) * x.dtype.itemsize for x, where in pairs)

    return StateBytes(
        parameters=total(abstract.model, shardings.model),
        optimizer=total(abstract.opt_state, shardings.opt_state),
        average=total(abstract.ema, shardings.ema),
    )


def compile_for_slice(prepared: Prepared) -> Compiled:
    """Compile the step. This takes a minute or more.

    Raises:
        ConfigError: the compiler failed for another reason than memory.
    """
    with jax.set_mesh(prepared.mesh):
        lowered = lower_step(prepared.config, prepared.optimizer, prepared.abstract, prepared.mesh)
        since, cpu_since = time.perf_counter(), time.process_time()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            seconds, cpu_seconds = time.perf_counter() - since, time.process_time() - cpu_since
            if not is_out_of_memory(error):
                raise ConfigError(f"the compiler failed: {str(error).strip().splitlines()[0]}") from error
            used, limit = refused_bytes(str(error))
            state = sum(prepared.state)
            if "HLO temporaries" in str(error):  # the message counts these alone, and its limit is what they may have
                used, limit = used + state, None
            arguments = min(state, used)
            memory = ProgramMemory(arguments, used - arguments, used) if used else None
            return Compiled(memory, limit, 0, None, seconds, cpu_seconds, "")
        seconds, cpu_seconds = time.perf_counter() - since, time.process_time() - cpu_since
    text = compiled.as_text() or ""
    return Compiled(
        memory=memory_of(compiled),
        limit=None,
        activations=kept_activations(text, rows=prepared.rows, weights=_parts_of_weights(prepared)),
        collectives=tuple(collectives(text, devices=prepared.mesh.size)),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        text=text,
    )


def kept_activations(text: str, *, rows: int, weights: frozenset[tuple[int, ...]] = frozenset()) -> int:
    """Bytes of the arrays that loops over blocks stack for the backward pass.

    Args:
        rows: rows of the batch that a device has at once; the arrays have one entry per block with these rows.
        weights: shapes of the parts of parameters, which are stacked too and may have an axis of this size.
    """
    return sum(
        array.bytes
        for loop in loops(text)
        if not loop.is_backward
        for array in loop.carried
        if len(array.shape) > 2
        and array.shape[0] == loop.trips
        and rows in array.shape[1:3]
        and array.shape not in weights
    )


def _parts_of_weights(prepared: Prepared) -> frozenset[tuple[int, ...]]:
    """Shapes of the part of each parameter that a device has."""
    model = prepared.abstract.model
    placed = jax.tree.leaves(shardings_for(model, prepared.mesh))
    return frozenset(where.shard_shape(x.shape) for x, where in zip(jax.tree.leaves(model), placed, strict=True))


def refused_bytes(message: str) -> tuple[int, int | None]:
    """Bytes that a refused program needs, and that a device has, from the compiler's message; 0 and None if not said.

    >>> refused_bytes("Ran out of memory in memory space hbm. Used 1.50G of 1.00G hbm. Exceeded hbm capacity by ...")
    (1610612736, 1073741824)
    >>> refused_bytes("... the total memory required for HLO temporaries (1.50G) exceeds available HBM (1.00G).")
    (1610612736, 1073741824)
    """
    for pattern in (r"Used {0} of {0} hbm", r"\({0}\) exceeds available HBM \({0}\)"):
        if found := re.search(pattern.format(r"([\d.]+)([KMG])"), message):
            return _bytes(found[1], found[2]), _bytes(found[3], found[4])
    return 0, None


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * {"K": 2**10, "M": 2**20, "G": 2**30}[unit])
