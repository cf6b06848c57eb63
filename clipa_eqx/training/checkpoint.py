"""Training checkpoints: saved by Orbax, read only once committed, restored onto any mesh."""

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from clipa_eqx.errors import CheckpointError, listed
from clipa_eqx.models.clip import CLIP, CLIPConfig, abstract_clip
from clipa_eqx.saved.leaf_file import Leaf
from clipa_eqx.sharding import shardings_for
from clipa_eqx.training.space import tree_bytes, write_error
from clipa_eqx.training.state import TrainState
from clipa_eqx.trees import from_leaves, leaves_by_path

_log = logging.getLogger(__name__)

_FORMAT = 1
_OPTIMIZER, _FORMER_OPTIMIZER = "optimizer", "optimiser"
"""Name of the optimizer state inside a checkpoint, and its name before fields and files took US spelling."""


class Checkpoints:
    """The checkpoints of one run: ``<folder>/<step>/``, the last ``keep`` of them. Use it in a ``with`` block.

    A step exists only once it is committed: a folder that a killed process left unfinished is never read. Leaves are
    stored and restored by path, so that reordering fields cannot swap values.
    """

    def __init__(self, folder: Path, *, keep: int | None) -> None:
        """Open for writing and keep the last ``keep``; with ``None`` open for reading only, which changes no file."""
        if keep is None:
            options = ocp.CheckpointManagerOptions(read_only=True, create=False)
        else:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=True, create=True, cleanup_tmp_directories=True
            )
        self._manager: Any = ocp.CheckpointManager(folder.absolute(), options=options)
        self.folder = folder
        self._saving: tuple[int, int] | None = None
        """Step and bytes of the save that may be running in the background."""
        self._failure: CheckpointError | None = None

    def latest(self) -> int | None:
        """The last step that is saved or being saved, or ``None``; right after opening, the last committed one."""
        return self._manager.latest_step()

    def committed(self) -> int | None:
        """Wait for a step that is being written, then give the last committed one."""
        self.wait()
        return self.latest()

    def check(self) -> None:
        """Raise the error of a save that failed in the background since the last call; call it after each step.

        Raises:
            CheckpointError: what could not be saved, why, and which step is saved.
        """
        # Not ``check_for_errors`` of Orbax: it clears the error, and Orbax then deletes old checkpoints as if it had
        # saved a new one.
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def save(self, state: TrainState, *, step: int, about: Mapping[str, Any]) -> None:
        """Start writing a state; return once it may be donated. ``about`` is JSON (the resolved run).

        Raises:
            CheckpointError: this save or the one before it failed.
        """
        self.wait()
        # On a CPU the host's view of an array is the array itself, and the next step overwrites it: copy first.
        if jax.default_backend() == "cpu":
            state = jax.tree.map(lambda leaf: leaf.copy(), state)
        leaves = {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves_by_path(state).items()}
        record = {"format": _FORMAT, "leaves": leaves, "about": dict(about)}
        self._saving = (step, tree_bytes(state))
        with self._explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(_nested(state.model)),
                    optimizer=ocp.args.StandardSave(_nested(state.opt_state)),
                    record=ocp.args.JsonSave(record),
                ),
            )

    def restore(self, abstract: TrainState, mesh: Mesh, *, step: int) -> TrainState:
        """The state of a step, placed on ``mesh`` by the rule table; another mesh may have saved it.

        Raises:
            CheckpointError: the checkpoint has other leaves, shapes or dtypes than ``abstract``, or cannot be read.
        """
        _check_same(self.leaves(step), abstract, where=f"checkpoint {self.folder / str(step)}")
        shardings = shardings_for(abstract, mesh)
        optimizer = self._optimizer(step)
        trees = {
            "model": _nested(_with_shardings(abstract.model, shardings.model)),
            optimizer: _nested(_with_shardings(abstract.opt_state, shardings.opt_state)),
        }
        restored = self._read(step, **trees)
        model = _unnested(abstract.model, restored["model"])
        opt_state = _unnested(abstract.opt_state, restored[optimizer])
        counter = jax.device_put(np.asarray(step, np.int32), shardings.step)
        return TrainState(model=model, opt_state=opt_state, step=counter)

    def restore_model(self, config: CLIPConfig, mesh: Mesh, *, step: int) -> CLIP:
        """The model of a step without its optimizer.

        Raises:
            CheckpointError: the checkpoint holds another architecture than ``config``, or cannot be read.
        """
        abstract = abstract_clip(config)
        leaves = self.leaves(step).items()
        stored = {path.removeprefix("model/"): leaf for path, leaf in leaves if path.startswith("model/")}
        _check_same(stored, abstract, where=f"checkpoint {self.folder / str(step)}")
        restored = self._read(step, model=_nested(_with_shardings(abstract, shardings_for(abstract, mesh))))
        return _unnested(abstract, restored["model"])

    def leaves(self, step: int) -> dict[str, Leaf]:
        """Shape and dtype of each stored leaf, by its path in a ``TrainState``."""
        return {
            path: Leaf(tuple(shape), jnp.dtype(dtype)) for path, (shape, dtype) in self._record(step)["leaves"].items()
        }

    def read_leaf(self, step: int, path: str) -> np.ndarray:
        """One leaf of a step, by its path in a ``TrainState``, without the others.

        Raises:
            CheckpointError: it cannot be read.
        """
        part, _, rest = path.partition("/")
        item: Any = 0
        how: Any = ocp.RestoreArgs(restore_type=np.ndarray)
        for name in reversed(rest.split("/")):
            item, how = {name: item}, {name: how}
        args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        folder = (self.folder / str(step) / {"model": "model", "opt_state": self._optimizer(step)}[part]).absolute()
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                node = reader.restore(folder, args=args)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} of checkpoint {self.folder / str(step)} is damaged ({error})") from error
        for name in rest.split("/"):
            node = node[name]
        return np.asarray(node)

    def about(self, step: int) -> dict[str, Any]:
        """The ``about`` that ``save`` was given."""
        return self._record(step)["about"]

    def wait(self) -> None:
        """Block until every save is committed.

        Raises:
            CheckpointError: one of them failed in the background.
        """
        with self._explained():
            self._manager.wait_until_finished()
        self._saving = None

    def close(self) -> None:
        """Wait, then release the threads; errors as ``wait``."""
        try:
            self.wait()
            self._manager.close()
        except CheckpointError:
            with suppress(Exception):  # other threads report the same failure
                self._manager.close()
            raise

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except CheckpointError as problem:
            if error is None:
                raise
            if error is not self._failure:  # which is what ended the block
                _log.warning("%s", problem)

    @contextmanager
    def _explained(self) -> Generator[None]:
        """Turn a failed save into one error that names the steps that are saved."""
        if self._failure is not None:
            raise self._failure
        try:
            yield
        except Exception as error:
            if self._saving is None:
                raise
            step, size = self._saving
            what, good = f"checkpoint {step} could not be written to {self.folder}", ""
            with suppress(OSError):  # the disk may be gone
                steps = self._manager.all_steps(read=True)
                good = f"The last saved step is {max(steps)}." if steps else "No step of this run is saved."
            self._failure = write_error(what, error, folder=self.folder, needed=size, then=good)
            raise self._failure from error

    def _optimizer(self, step: int) -> str:
        """The name of the optimizer state in the checkpoint of a step."""
        return _FORMER_OPTIMIZER if (self.folder / str(step) / _FORMER_OPTIMIZER).is_dir() else _OPTIMIZER

    def _record(self, step: int) -> dict[str, Any]:
        try:
            record = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} cannot be read ({error}); delete that folder to resume from "
                "the one before it"
            ) from error
        if record.get("format") != _FORMAT:
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} has format {record.get('format')!r}, this clipa_eqx reads "
                f"{_FORMAT}; use the version that wrote it"
            )
        return record

    def _read(self, step: int, **trees: Any) -> Any:
        args = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()}
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**args))
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} is damaged ({error}); delete that folder to resume from the "
                "one before it"
            ) from error


def _nested(tree: Any) -> dict[str, Any]:
    """Nested dictionaries of the leaves, one level per part of a path."""
    out: dict[str, Any] = {}
    for path, leaf in leaves_by_path(tree).items():
        *parents, name = path.split("/")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return out


def _unnested(like: Any, nested: Mapping[str, Any]) -> Any:
    """A tree shaped like ``like`` with the leaves of nested dictionaries."""
    return from_leaves(like, leaves_by_path(nested))


def _with_shardings(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _check_same(stored: Mapping[str, Leaf], abstract: Any, *, where: str) -> None:
    expected = {path: Leaf(tuple(leaf.shape), leaf.dtype) for path, leaf in leaves_by_path(abstract).items()}
    problems = [f"missing in the checkpoint: {path}" for path in expected if path not in stored]
    problems += [f"not in this model: {path}" for path in stored if path not in expected]
    problems += [
        f"{path}: {_show(stored[path])} in the checkpoint, {_show(expected[path])} expected"
        for path in expected
        if path in stored and stored[path] != expected[path]
    ]
    if problems:
        raise CheckpointError(
            f"{where} is of another architecture or optimizer; use the config it was trained with, or start a new run "
            f"from it with --init-from, {listed(problems)}"
        )


def _show(leaf: Leaf) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
