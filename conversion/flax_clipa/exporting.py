"""Export of a model folder, or of a run's training state, to a checkpoint of the reference's JAX code."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from clipa_eqx.errors import CheckpointError, ConversionError
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.progress import progress_bar
from clipa_eqx.replacing import check_apart, scratch_folder
from clipa_eqx.saved.description import optimizer_file
from clipa_eqx.saved.kinds import PROVENANCE_FILE, WEIGHTS_FILE, expect_kind
from clipa_eqx.saved.leaf_file import LeafReader
from clipa_eqx.saved.leaf_hashes import check_file
from clipa_eqx.saved.leaf_shapes import check_leaves
from clipa_eqx.saved.model_folder import ModelFolder, open_model_folder
from clipa_eqx.saved.optimizer_file import Counts, open_optimizer_state
from conversion.flax_clipa.names import flax_rules
from conversion.flax_clipa.npz import NpzFile
from conversion.flax_clipa.npz_writer import NpzWriter, check_target, new_npz
from conversion.flax_clipa.optimizer_entries import CHRONO, state_entries
from conversion.flax_clipa.shapes import FlaxLayout
from conversion.flax_clipa.unpack_run import unpack_run
from conversion.weights.formats import FLAX
from conversion.weights.numerics import numerics_of
from conversion.weights.rules import Placed, RuleTable, raise_problems
from conversion.weights.tensors import FLOATS, TensorView

_log = logging.getLogger(__name__)

FLOAT32 = np.dtype(np.float32)
_STORED = tuple(map(str, FLOATS))


class _Spelling(NamedTuple):
    """Names, shapes and dtypes of the checkpoint to write."""

    prefix: str = "params/"
    layout: FlaxLayout = FlaxLayout()
    dtypes: Mapping[str, str] = {}


def export_flax(folder: Path, target: Path, *, overwrite: bool = False) -> None:
    """Write ``target``, and log what was written.

    A model folder that was imported from such a checkpoint is written with the names, shapes and dtypes it had there,
    including optimizer state, counts and times. Any other gets the layout of the reference's main branch. For a run
    folder, the last committed checkpoint is written, including its optimizer state.

    Raises:
        CheckpointError: the folder is neither, or damaged; or ``target`` would be inside a model folder.
        ConversionError: ``target`` exists (and not ``overwrite``) or cannot be written; leaves that are not finite.
    """
    real = check_target(target, overwrite=overwrite)
    if expect_kind(folder, "run folder", "model folder") == "model folder":
        # With a foreign file in it, a model folder is never replaced again.
        check_apart(target, [folder])
        opened = open_model_folder(folder)
        _export_leaves(folder, opened.config, target, _spelling(opened), overwrite=overwrite)
        return
    try:
        # Orbax stores stacked leaves, the target one tensor per layer: sort them on disk, next to the target.
        with scratch_folder(real) as scratch:
            config = unpack_run(folder, scratch)
            _export_leaves(scratch, config, target, _Spelling(), overwrite=overwrite)
    except OSError as error:
        raise ConversionError(f"{target} cannot be written ({error}); nothing was left there") from error


def _spelling(folder: ModelFolder) -> _Spelling:
    if folder.provenance.format != FLAX:
        return _Spelling()
    match folder.provenance.layout:
        case {
            "attention": "split" | "flat" as attention,
            "temperature": [] | [1] as temperature,
            "prefix": str(prefix),
            "dtypes": dict(dtypes),
        } if all(kind in _STORED for kind in dtypes.values()):
            return _Spelling(prefix, FlaxLayout(attention, tuple(temperature)), dtypes)
        case other:
            raise CheckpointError(
                f"{folder.path / PROVENANCE_FILE} does not say how its source was laid out; its layout is "
                f"{str(other)[:200]}"
            )


def _export_leaves(folder: Path, config: CLIPConfig, target: Path, spelling: _Spelling, *, overwrite: bool) -> None:
    """Write the files of a model folder as a checkpoint, and compare it with them."""
    if numerics_of(config).profile != "flax":
        _log.warning(
            "this model's norms or GELU differ from the Flax profile, the only one that the reference's code has: with "
            "the same weights it gives slightly different embeddings"
        )
    table = RuleTable(flax_rules(config, spelling.layout), config)
    with ExitStack() as stack:
        leaves = stack.enter_context(LeafReader(folder / WEIGHTS_FILE))
        check_leaves(leaves.leaves, config, where=str(leaves.path))
        check_file(leaves, folder)
        state = stack.enter_context(open_optimizer_state(folder)) if optimizer_file(folder).exists() else None
        entries = dict(_params(table.placed, leaves, spelling))
        if state is not None:
            _warn_of_t5x(state.counts)
            entries |= state_entries(table.placed, state)
        size = sum(4 * int(np.prod(one.shape)) for one in table.placed.values())
        total = (2 if state is None else 4) * size
        with (
            progress_bar(what="export", total=total, unit="B") as bar,
            new_npz(target, overwrite=overwrite) as archive,
        ):
            _write(archive, entries, bar.update, where=str(folder))
            _check_written(archive.path, table, spelling, leaves, bar.update)
    what = "" if state is None else f", optimizer state of step {state.counts.schedule_steps}"
    _log.info("%s written: %d tensors%s", target, len(table.placed), what)


def _warn_of_t5x(counts: Counts) -> None:
    if counts.updates != counts.schedule_steps:
        _log.warning(
            "Adam has counted %d updates, the schedules %d, as in runs of the t5x trainer; the main branch never "
            "writes such a state, so import the original checkpoint, not this export",
            counts.updates,
            counts.schedule_steps,
        )


def _write(
    archive: NpzWriter, entries: Mapping[str, Callable[[], np.ndarray]], advance: Callable[[int], object], *, where: str
) -> None:
    """Write and close the archive. Raises ``ConversionError`` listing entries that are not finite."""
    problems: list[str] = []
    for name in sorted(entries, key=_order):
        array = entries[name]()
        if not np.isfinite(array).all():
            problems.append(f"not finite: {name}")
            continue
        archive.write(name, array)
        advance(array.size * 4)
    raise_problems(problems, where=where)
    archive.close()


def _params(
    placed: Mapping[str, Placed], leaves: LeafReader, spelling: _Spelling
) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Names of the parameters, and functions that give their values."""
    for name, one in placed.items():
        yield spelling.prefix + name, partial(_stored_as, one, leaves, spelling.dtypes.get(name))


def _stored_as(one: Placed, leaves: LeafReader, dtype: str | None) -> np.ndarray:
    """A parameter in the dtype it had, or in float32 if that dtype no longer holds its values."""
    array = one.export(leaves.read)
    if dtype is None:
        return array
    narrow = array.astype(np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else dtype)
    if np.array_equal(narrow.astype(FLOAT32), array):
        return narrow
    _log.info("%s was stored as %s, which no longer holds its values: stored as float32", one.name, dtype)
    return array


def _order(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key of the reference's order of entries: keys of dictionaries by name, members of tuples by number."""
    return tuple((int(part) if part.isdigit() else -1, part) for part in name.split("/"))


def _check_written(
    path: Path, table: RuleTable, spelling: _Spelling, leaves: LeafReader, advance: Callable[[int], object]
) -> None:
    """Read the new file as an import does, and compare it with the leaves, bit by bit."""
    with NpzFile(path) as file:
        names = {n.removeprefix(spelling.prefix): n for n in file.tensors if n.startswith(spelling.prefix)}
        names = {name: there for name, there in names.items() if not name.startswith(("opt/", CHRONO))}
        for tensor in table.read(TensorView(file, names)):
            for name, layer, values in tensor.slices:
                if not np.array_equal(values, leaves.read(name, layer)):
                    raise ConversionError(f"{name} read back from {path.name} has other values; please report this")
                advance(values.nbytes)
