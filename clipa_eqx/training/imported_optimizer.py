"""Resuming a run of the reference from the moments, counts and step that were imported with its weights."""

import re
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipa_eqx.errors import CheckpointError, listed
from clipa_eqx.models.clip import CLIP, CLIPConfig, abstract_clip
from clipa_eqx.optim import OptimConfig
from clipa_eqx.reference_chain import ChainShape, chain_shape
from clipa_eqx.saved.optimizer_file import FIRST_SCHEDULE, OptimizerState, open_optimizer_state
from clipa_eqx.sharding import shardings_for
from clipa_eqx.training.state import TrainState
from clipa_eqx.trees import leaves_by_path, map_with_path


def continued_state(
    model: CLIP, folder: Path, optim: OptimConfig, *, abstract: TrainState, mesh: Mesh, verify: bool = True
) -> TrainState:
    """The training state of an imported checkpoint: ``model`` with its optimizer, at the stored step.

    Args:
        model: the imported weights.
        folder: the model folder with the optimizer state.
        optim: the optimizer of this run.
        abstract: shapes and dtypes of the state.
        mesh: the devices to place it on.
        verify: compare the leaves of the optimizer state with their recorded SHA-256.

    Raises:
        CheckpointError: there is no optimizer state, or it is not of the optimizer that ``optim`` describes: other
            frozen leaves, dtype of the first moments, number of schedules, decay or factors where there were none. The
            message lists every difference.
    """
    with open_optimizer_state(folder, verify=verify) as stored:
        _refuse(folder, [*_problems(stored, model.config, optim, abstract), *_bad_values(stored, abstract)])
        # Copied out of the memory map: the file is closed before training starts.
        opt_state = map_with_path(lambda path, _: np.array(_stored_leaf(stored, path)), abstract.opt_state)
        step = stored.counts.schedule_steps
    state = TrainState(model=model, opt_state=opt_state, step=jnp.asarray(step, jnp.int32))
    return jax.device_put(state, shardings_for(abstract, mesh))


def check_optimizer(folder: Path, config: CLIPConfig, optim: OptimConfig, *, abstract: TrainState) -> int:
    """The step at which the stored optimizer state is. Its description is checked, its values are not read.

    Raises:
        CheckpointError: as for ``continued_state``, except for values.
    """
    with open_optimizer_state(folder, verify=False) as stored:
        _refuse(folder, _problems(stored, config, optim, abstract))
        return stored.counts.schedule_steps


def _refuse(folder: Path, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(
            f"{folder}: its optimizer state is not of this config's optimizer; use the settings of the run that "
            f"wrote it, or start at step 0 without init.optimizer, {listed(problems)}"
        )


def _problems(stored: OptimizerState, config: CLIPConfig, optim: OptimConfig, abstract: TrainState) -> list[str]:
    chain = chain_shape(optim, abstract_clip(config))
    return [*_contradictions(stored, optim, chain), *_misfits(stored, abstract)]


def _misfits(stored: OptimizerState, abstract: TrainState) -> list[str]:
    moments = _moments(abstract)
    problems: list[str] = []
    for name in sorted(set(moments) - set(stored.file.leaves)):
        problems.append(f"missing: {name}; it was frozen, or not trained by Adam")
    for name in sorted(set(stored.file.leaves) - set(moments) - {"updates", "schedule_steps"}):
        problems.append(f"unused: {name}; this config freezes it")
    for name, leaf in moments.items():
        found = stored.file.leaves.get(name)
        if found is None:
            continue
        if found.shape != tuple(leaf.shape):
            problems.append(f"shape: {name} is {found.shape}, expected {tuple(leaf.shape)}")
        if found.dtype != leaf.dtype:
            setting = f"; set optim.mu_dtype to {found.dtype}" if name.startswith("mu/") else ""
            problems.append(f"dtype: {name} is {found.dtype}, expected {leaf.dtype}{setting}")
    return problems


def _bad_values(stored: OptimizerState, abstract: TrainState) -> list[str]:
    problems: list[str] = []
    for name in _moments(abstract):
        if name not in stored.file.leaves:
            continue
        values = stored.file.read(name)
        if not np.isfinite(values).all():
            problems.append(f"not finite: {name}")
        elif name.startswith("nu/") and (values < 0).any():
            problems.append(f"negative: {name}, a second moment, of which Adam takes the root")
    return problems


def _moments(abstract: TrainState) -> dict[str, Any]:
    """The moments that a state has, by their names in the file."""
    wanted = leaves_by_path(abstract.opt_state)
    return {f"{kind}/{path}": leaf for name, leaf in wanted.items() for kind, path in [_moment(name)] if kind}


def _contradictions(stored: OptimizerState, optim: OptimConfig, chain: ChainShape) -> list[str]:
    """Differences between this config and the run, as far as the order of the reference's chain shows them."""
    layers = {(path, layer) for path, layer in chain.frozen if layer is not None}
    problems = [f"frozen there, trained here: {p} layer {i}" for p, i in sorted(stored.frozen_layers - layers)]
    problems += [f"trained there, frozen here: {p} layer {i}" for p, i in sorted(layers - stored.frozen_layers)]
    entries = stored.counts.about.get("schedule_entries")
    if entries is None:
        return problems
    between = min(entries) - FIRST_SCHEDULE
    here = chain.decays + chain.factors
    if between == 0 and here:
        problems.append(
            f"there was neither weight decay nor a learning-rate factor, here optim.weight_decay={optim.weight_decay} "
            f"gives {chain.decays} decay(s) and optim.lr_factors {chain.factors} factor(s)"
        )
    if between and not here:
        problems.append(
            f"there were {between} pattern(s) of weight decay or learning-rate factors, here there are none"
        )
    if chain.schedules > len(entries):
        problems.append(f"there were {len(entries)} schedule(s), optim.schedules has {chain.schedules}")
    return problems


def _stored_leaf(stored: OptimizerState, path: str) -> np.ndarray:
    kind, name = _moment(path)
    if kind:
        return stored.file.read(f"{kind}/{name}")
    counts = stored.counts
    return np.asarray(counts.updates if path.endswith("count") else counts.schedule_steps, np.int32)


def _moment(path: str) -> tuple[Literal["mu", "nu", ""], str]:
    """Kind and leaf of a moment by its path in the optimizer's state; an empty kind is a count."""
    found: Any = re.fullmatch(r"(?:.*/)?(mu|nu)/(.+)", path)
    return (found[1], found[2]) if found else ("", path)
