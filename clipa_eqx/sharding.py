"""The device mesh and where every leaf of a training state lives on it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from clipa_eqx.errors import ConfigError, ShardingError
from clipa_eqx.trees import leaves_by_path, map_with_path, match_by_path, stacked_depth

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
"""The mesh axes that split the batch."""

BATCH = PartitionSpec(BATCH_AXES)

Placement = Literal["columns", "rows", "largest", "parts", "whole"]

RULES: tuple[tuple[str, Placement], ...] = (
    # Weights are (out, in). "columns": outputs are split over "tensor", which for q, k and v means heads; "rows":
    # inputs are, so that the parts of a sum are added up after the product. Both, and "largest", are also split over
    # "fsdp" along the largest divisible axis that is left, but never along the depth axis of a stack.
    # "parts": the last axis is split over "tensor". "whole": a copy on each device, for small leaves.
    # What does not divide is not split.
    (r"(.*/)?(q|k|v|fc_in)/weight", "columns"),
    (r"(.*/)?(out|fc_out)/weight", "rows"),
    (r"(.*/)?(q|k|v|fc_in)/bias", "parts"),
    (r"(.*/)?(patch|head|token)/weight", "largest"),
    # Factors next to a weight: the axis that the weight splits is split in the factor that has it.
    (r"(.*/)?(q|k|v|fc_in)/lora_up", "columns"),
    (r"(.*/)?(out|fc_out)/lora_down", "rows"),
    (r"(.*/)?lora_(down|up)", "largest"),
    (r"(.*/)?position", "whole"),
    (r"(.*/)?(weight|bias|class_token|probe|log_temperature)", "whole"),
    (r"(.*/)?(count|updates_done|step)", "whole"),
)
"""One table for parameters and optimizer state: the paths of moments end in the path of their parameter.

Splitting over "tensor" is that of Shoeybi et al. 2019 (arXiv:1909.08053), section 3.
"""


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes; their product must be the number of devices.

    Attributes:
        data: copies of the model, each with its part of the batch; ``None`` uses all devices that the others leave.
        fsdp: parts into which parameters and optimizer state are split; each also has its part of the batch.
        tensor: parts into which attention heads and the hidden layer of the MLPs are split. Its devices compute the
            same rows of the batch, and exchange activations twice per block: keep it within a host.

    Raises:
        ConfigError: a size below 1.
    """

    data: int | None = None
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name in AXES:
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ConfigError(f"mesh.{name} is {size}; it must be at least 1")

    def sizes(self, devices: int) -> tuple[int, int, int]:
        """Sizes of (data, fsdp, tensor) on this many devices.

        Raises:
            ShardingError: the product of the axes is not the number of devices.
        """
        rest = self.fsdp * self.tensor
        data = devices // rest if self.data is None else self.data
        if data * rest != devices:
            raise ShardingError(
                f"mesh data={self.data} x fsdp={self.fsdp} x tensor={self.tensor} is not {devices} devices; "
                f"change mesh.data, mesh.fsdp or mesh.tensor so that the product is {devices}"
            )
        return data, self.fsdp, self.tensor


def make_mesh(config: MeshConfig, *, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh with axes ``("data", "fsdp", "tensor")`` over the given devices, by default all.

    Devices are ordered by process, so that each process holds consecutive rows of the batch and the row of a sample is
    the same on every mesh.

    Raises:
        ShardingError: the product of the axes is not the number of devices.
    """
    chosen = sorted(jax.devices() if devices is None else devices, key=lambda d: (d.process_index, d.id))
    grid = np.array(chosen, dtype=object).reshape(config.sizes(len(chosen)))
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shardings_for(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A ``NamedSharding`` for each leaf of a (possibly abstract) model or training state.

    Raises:
        ConfigError: a leaf that no rule of ``RULES`` matches.
    """
    return _shardings(tree, mesh, last=None)


def sampling_shardings_for(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """The shardings under which random initial values do not depend on the mesh, for each leaf of a model.

    They are those of ``shardings_for``, except that a last axis is never split. With JAX 0.12 on a CPU, normal samples
    in shards of fewer than 8 columns have other last bits (``findings/jax_random_normal_depends_on_sharding.sh``).

    Raises:
        ConfigError: a leaf that no rule of ``RULES`` matches.
    """
    return _shardings(tree, mesh, last=-1)


def replicated(mesh: Mesh) -> NamedSharding:
    """A complete copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over the batch axes, in the order of the devices."""
    return NamedSharding(mesh, BATCH)


def check_batch(batch_size: int, mesh: Mesh | AbstractMesh) -> None:
    """Check that the batch axes of the mesh divide the batch.

    Raises:
        ShardingError: they do not.
    """
    parts = batch_parts(mesh)
    if batch_size % parts:
        raise ShardingError(
            f"batch_size {batch_size} cannot be split evenly over {parts} devices "
            f"(mesh data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}); use a multiple of {parts}"
        )


def rows_of_process(batch_size: int, mesh: Mesh) -> range:
    """The rows of a global batch that the devices of this process hold.

    If the devices of one place on the batch axes belong to several processes, each of them holds its rows.
    """
    size = batch_size // batch_parts(mesh)
    parts = _parts_of_process(mesh)
    return range(parts.start * size, parts.stop * size)


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """The number of parts into which the mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_micro_batch(micro_batch: int, mesh: Mesh | AbstractMesh) -> None:
    """Check that the batch axes of the mesh divide a micro-batch.

    Raises:
        ShardingError: they do not.
    """
    if micro_batch % batch_parts(mesh):
        raise ShardingError(
            f"micro_batch {micro_batch} cannot be split evenly over {batch_parts(mesh)} devices "
            f"(mesh data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}); use a multiple of {batch_parts(mesh)}"
        )


def put_global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays split over the batch axes; returns before the copy is done.

    Args:
        batch: arrays whose first axis has the rows ``rows_of_process``.
    """
    sharding, parts = batch_sharding(mesh), _parts_of_process(mesh)

    def put(rows: np.ndarray) -> jax.Array:
        size = len(rows) // len(parts)
        first = parts.start * size

        def of_device(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(size * batch_parts(mesh))
            return rows[start - first : stop - first]

        return jax.make_array_from_callback((size * batch_parts(mesh), *rows.shape[1:]), sharding, of_device)

    return {name: put(rows) for name, rows in batch.items()}


def describe_shardings(tree: Any, mesh: Mesh | AbstractMesh) -> dict[str, PartitionSpec]:
    """The partition of each leaf by path, for reports."""
    return {path: sharding.spec for path, sharding in leaves_by_path(shardings_for(tree, mesh)).items()}


def _parts_of_process(mesh: Mesh) -> range:
    """The parts of the batch on this process's devices, which ``make_mesh`` puts next to each other."""
    devices: list[Any] = list(mesh.devices.flat)
    mine = [place for place, device in enumerate(devices) if device.process_index == jax.process_index()]
    tensor = mesh.shape["tensor"]
    return range(mine[0] // tensor, mine[-1] // tensor + 1)


def _shardings(tree: Any, mesh: Mesh | AbstractMesh, *, last: int | None) -> Any:
    placements = match_by_path(RULES, tree, what="sharding.RULES", unused="allow")
    sizes = dict(mesh.shape)

    def place(path: str, leaf: Any) -> NamedSharding:
        first = 0 if stacked_depth(path, leaf) is None else 1
        axes = range(len(leaf.shape))[first:last]
        return NamedSharding(mesh, _spec(leaf.shape, placements[path], sizes=sizes, axes=axes))

    return map_with_path(place, tree)


def _spec(shape: tuple[int, ...], placement: Any, *, sizes: Mapping[str, int], axes: range) -> PartitionSpec:
    """The partition of a leaf of which ``axes`` may be split."""
    split: dict[int, str] = {}
    tensor_axis = {"columns": len(shape) - 2, "rows": len(shape) - 1, "parts": len(shape) - 1}.get(placement, -1)
    if tensor_axis in axes and sizes["tensor"] > 1 and shape[tensor_axis] % sizes["tensor"] == 0:
        split[tensor_axis] = "tensor"
    if placement in ("columns", "rows", "largest") and sizes["fsdp"] > 1:
        divisible = [axis for axis in axes if axis not in split and shape[axis] % sizes["fsdp"] == 0]
        if divisible:
            split[max(divisible, key=lambda axis: shape[axis])] = "fsdp"
    return PartitionSpec(*(split.get(axis) for axis in range(len(shape)))) if split else PartitionSpec()
