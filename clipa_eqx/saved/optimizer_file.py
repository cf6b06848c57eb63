"""The optimizer state in a model folder: moments by leaf path, counts, and which layers were frozen."""

import json
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from clipa_eqx.errors import CheckpointError
from clipa_eqx.saved.description import optimizer_file
from clipa_eqx.saved.leaf_file import Leaf, LeafReader, LeafSlice, LeafWriter
from clipa_eqx.saved.leaf_hashes import check_file

Kind = Literal["mu", "nu"]

FIRST_SCHEDULE = 3
"""Index of the first schedule's count in the reference's chain without decay patterns and learning-rate multipliers;
each of these adds one (docs/reference.md F2.1)."""

_FLOAT32, _INT32 = np.dtype(np.float32), np.dtype(np.int32)


class Counts(NamedTuple):
    """Number of updates of Adam and of the schedules, and other facts that the source records (JSON)."""

    updates: int
    schedule_steps: int
    about: Mapping[str, Any]


class OptimizerState(NamedTuple):
    """An open ``optimizer.safetensors``; moments are read on request.

    Leaves without moments were frozen. The ``frozen_layers`` were frozen too; their moments are zeros.
    """

    counts: Counts
    frozen_layers: frozenset[tuple[str, int]]
    file: LeafReader

    @property
    def paths(self) -> list[str]:
        """Paths of the leaves that have moments."""
        return [name.removeprefix("mu/") for name in self.file.leaves if name.startswith("mu/")]

    @property
    def mu_dtype(self) -> str:
        """Dtype of the first moments in the file."""
        return next((str(leaf.dtype) for name, leaf in self.file.leaves.items() if name.startswith("mu/")), "float32")

    def is_live(self, path: str, layer: int | None) -> bool:
        """True if a leaf, or one layer of it, was trained."""
        return f"mu/{path}" in self.file.leaves and (layer is None or (path, layer) not in self.frozen_layers)

    def read(self, kind: Kind, path: str, layer: int | None = None) -> np.ndarray:
        """A moment of a leaf, or of one layer of it."""
        return self.file.read(f"{kind}/{path}", layer)


@contextmanager
def open_optimizer_state(folder: Path, *, verify: bool = True) -> Generator[OptimizerState]:
    """Open the optimizer state of a model folder.

    Args:
        folder: the model folder.
        verify: compare SHA-256 of all leaves with the recorded ones, which reads the file once.

    Raises:
        CheckpointError: the model folder has none, or it is damaged; names changed leaves.
    """
    path = optimizer_file(folder)
    if not path.exists():
        raise CheckpointError(
            f"{folder} has no {path.name}: only models imported from a full training checkpoint have their "
            "optimizer's state"
        )
    with LeafReader(path) as file:
        try:
            counts = Counts(
                int(file.read("updates")), int(file.read("schedule_steps")), json.loads(file.metadata["about"])
            )
            frozen = frozenset((str(name), int(layer)) for name, layer in json.loads(file.metadata["frozen_layers"]))
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path} is not an optimizer state ({error!r}); import the checkpoint again"
            ) from error
        state = OptimizerState(counts, frozen, file)
        paths = {
            name.removeprefix(f"{kind}/") for name in file.leaves for kind in ("mu", "nu") if name.startswith(kind)
        }
        wanted = {f"{kind}/{name}" for kind in ("mu", "nu") for name in paths} | {"updates", "schedule_steps"}
        if wanted != set(file.leaves):
            raise CheckpointError(
                f"{path} is not an optimizer state: {sorted(wanted ^ set(file.leaves))} have no counterpart; "
                "import the checkpoint again"
            )
        if verify:
            check_file(file, folder)
        yield state


def write_optimizer_state(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    moments: Iterable[tuple[Kind, LeafSlice]],
    *,
    counts: Counts,
    mu_dtype: np.dtype,
    frozen: Iterable[tuple[str, int | None]],
) -> dict[str, str]:
    """Write the file that ``open_optimizer_state`` reads.

    Args:
        shapes: shapes of all leaves of the model.
        moments: moments of all leaves, the layers of a leaf in order. Moments of frozen leaves are not written; those
            of frozen layers must be zeros.
        counts: number of updates so far.
        mu_dtype: dtype of the first moments.
        frozen: leaves (layer None) and layers without moments.

    Returns:
        SHA-256 of each leaf of the file, in hex.
    """
    frozen = set(frozen)
    live = {name: shape for name, shape in shapes.items() if not _is_frozen(name, shape, frozen)}
    leaves = {f"mu/{name}": Leaf(shape, mu_dtype) for name, shape in live.items()}
    leaves |= {f"nu/{name}": Leaf(shape, _FLOAT32) for name, shape in live.items()}
    leaves |= {"updates": Leaf((), _INT32), "schedule_steps": Leaf((), _INT32)}
    layers = sorted([name, layer] for name, layer in frozen if layer is not None and name in live)
    metadata = {"frozen_layers": json.dumps(layers), "about": json.dumps(dict(counts.about))}
    with LeafWriter(path, leaves, metadata=metadata) as writer:
        writer.write("updates", np.asarray(counts.updates, _INT32))
        writer.write("schedule_steps", np.asarray(counts.schedule_steps, _INT32))
        for kind, (name, layer, values) in moments:
            if name in live:
                writer.write(f"{kind}/{name}", values, layer=layer)
    return writer.checksums


def _is_frozen(name: str, shape: tuple[int, ...], frozen: set[tuple[str, int | None]]) -> bool:
    layers = {layer for path, layer in frozen if path == name}
    return None in layers or (bool(layers) and layers >= set(range(shape[0])))
