"""The leaves that a config requires, compared with the leaves of a file."""

import functools
from collections.abc import Mapping

import numpy as np

from clipa_eqx.errors import CheckpointError, listed
from clipa_eqx.models.clip import CLIPConfig, abstract_clip
from clipa_eqx.saved.leaf_file import Leaf
from clipa_eqx.trees import leaves_by_path

_FLOAT32 = np.dtype(np.float32)


@functools.lru_cache(maxsize=8)
def leaf_shapes(config: CLIPConfig) -> Mapping[str, tuple[int, ...]]:
    """The shape of each leaf of a model, by leaf path."""
    # Cached: a conversion asks several times, and tracing the initialization takes tens of milliseconds.
    skeleton = abstract_clip(config)
    return {path: tuple(leaf.shape) for path, leaf in leaves_by_path(skeleton).items()}


def leaf_problems(found: Mapping[str, Leaf], config: CLIPConfig) -> list[str]:
    """Leaves that are missing, unused, mis-shaped or not float32, one line each."""
    wanted = leaf_shapes(config)
    problems = [f"missing: {path} {shape}" for path, shape in wanted.items() if path not in found]
    problems += [f"unused: {path} {leaf.shape}" for path, leaf in sorted(found.items()) if path not in wanted]
    for path, leaf in found.items():
        if path in wanted and leaf.shape != wanted[path]:
            problems.append(f"shape: {path} is {leaf.shape}, expected {wanted[path]}")
        if path in wanted and leaf.dtype != _FLOAT32:
            problems.append(f"dtype: {path} is {leaf.dtype}, expected float32")
    return problems


def check_leaves(found: Mapping[str, Leaf], config: CLIPConfig, *, where: str) -> None:
    """Raise CheckpointError with all ``leaf_problems``, if there are any."""
    problems = leaf_problems(found, config)
    if problems:
        raise CheckpointError(f"{where} does not fit its config, {listed(problems)}")
