"""Meshes of the test session's fake devices."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh


def mesh_of(**sizes: int) -> Mesh:
    """The first devices in the shape of ``sizes``: ``mesh_of(data=4, fsdp=2)``.

    For functions that take any axes; a run's mesh is made by ``make_mesh``.
    """
    shape = tuple(sizes.values())
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    return Mesh(devices, tuple(sizes), axis_types=(AxisType.Auto,) * len(shape))
