"""The device mesh and where every leaf of a training state lives on it."""

import math
from collections.abc import Sequence
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

Placement = Literal["largest", "whole"]

RULES: tuple[tuple[str, Placement], ...] = (
    # "largest": split over "fsdp" along the largest divisible axis, but never along the depth axis of a stack.
    # "whole": a copy on each device, for vectors and scalars, which are small, and for position tables.
    (r"(.*/)?(q|k|v|out|fc_in|fc_out|patch|head|token)/weight", "largest"),
    (r"(.*/)?position", "whole"),
    (r"(.*/)?(weight|bias|class_token|probe|log_temperature)", "whole"),
    (r"(.*/)?(count|updates_done|step)", "whole"),
)
"""One table for parameters and optimizer state: the paths of moments end in the path of their parameter."""


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes; their product must be the number of devices.

    Attributes:
        data: copies of the model, each with its part of the batch; ``None`` uses all devices that the others leave.
        fsdp: parts into which parameters and optimizer state are split; each also has its part of the batch.
        tensor: reserved for splitting single matrix products; 1 for now.

    Raises:
        ConfigError: a size below 1, or ``tensor`` other than 1.
    """

    data: int | None = None
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name in AXES:
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ConfigError(f"mesh.{name} is {size}; it must be at least 1")
        if self.tensor != 1:
            raise ConfigError(f"mesh.tensor is {self.tensor}; splitting over tensor is not supported yet, use fsdp")

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
                f"change mesh.data or mesh.fsdp so that the product is {devices}"
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
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % parts:
        raise ShardingError(
            f"batch_size {batch_size} cannot be split evenly over {parts} devices "
            f"(mesh data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}); use a multiple of {parts}"
        )


def put_global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays split over the batch axes; returns before the copy is done."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def describe_shardings(tree: Any, mesh: Mesh | AbstractMesh) -> dict[str, PartitionSpec]:
    """The partition of each leaf by path, for reports."""
    return {path: sharding.spec for path, sharding in leaves_by_path(shardings_for(tree, mesh)).items()}


def _shardings(tree: Any, mesh: Mesh | AbstractMesh, *, last: int | None) -> Any:
    placements = match_by_path(RULES, tree, what="sharding.RULES", unused="allow")
    parts = mesh.shape["fsdp"]

    def place(path: str, leaf: Any) -> NamedSharding:
        first = 0 if stacked_depth(path, leaf) is None else 1
        axes = range(len(leaf.shape))[first:last]
        return NamedSharding(mesh, _spec(leaf.shape, placements[path], parts=parts, axes=axes))

    return map_with_path(place, tree)


def _spec(shape: tuple[int, ...], placement: Any, *, parts: int, axes: range) -> PartitionSpec:
    if placement == "whole" or parts == 1:
        return PartitionSpec()
    divisible = [axis for axis in axes if shape[axis] % parts == 0]
    if not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*(("fsdp" if axis == largest else None) for axis in range(len(shape))))
