"""Adapters on disk: the factors of a LoRA fine-tune alone, and the model that they belong to.

Such a folder is small: the rows of an adapted weight times the rank, not the weights. ``adapters.json`` has alpha, the
adapted layers, and the SHA-256 of every leaf of the base model; ``adapters.safetensors`` has the factors.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from clipa_eqx.buckets.mirror import local_copy, named
from clipa_eqx.errors import CheckpointError, ClipaError, ConfigError, listed
from clipa_eqx.json_config import from_json, to_json
from clipa_eqx.json_files import read_json_object
from clipa_eqx.models.clip import CLIP, CLIPConfig
from clipa_eqx.replacing import FolderKind, new_folder
from clipa_eqx.saved.description import write_json
from clipa_eqx.saved.kinds import ADAPTERS_FILE, FACTORS_FILE, expect_kind
from clipa_eqx.saved.leaf_file import Leaf, LeafReader, LeafWriter
from clipa_eqx.saved.leaf_hashes import array_hashes, check_hashes, recorded_hashes
from clipa_eqx.saved.provenance import Provenance
from clipa_eqx.surgery.configuration import NUMERIC_FIELDS, config_changes
from clipa_eqx.surgery.low_rank import Adapters, attach
from clipa_eqx.trees import leaves_by_path

_SCHEMA = 1
_DOWN, _UP = "/lora_down", "/lora_up"


def save_adapters(
    folder: Path | str,
    adapters: Adapters,
    *,
    base: CLIP,
    provenance: Provenance | Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a folder of adapters. It appears, or replaces the former one, once it is complete.

    Args:
        folder: the folder to write.
        adapters: factors, as ``surgery.detach`` gives them; they keep their types.
        base: the model that they belong to, without factors, such as the other result of ``surgery.detach``. Only the
            SHA-256 of its leaves are written.
        provenance: where the factors come from, as for ``save_model``.
        overwrite: replace a folder of adapters of the same name; a folder that holds anything else is never replaced.

    Raises:
        CheckpointError: the folder exists, or factors are not finite.
        ConfigError: the factors do not fit ``base``.
    """
    folder = Path(folder)
    attach(base, adapters)
    factors = {
        f"{path}{name}": np.asarray(jax.device_get(factor), order="C")
        for path, pair in adapters.factors.items()
        for name, factor in zip((_DOWN, _UP), pair, strict=True)
    }
    _check_finite(factors, where=f"the adapters to be saved as {folder}")
    given = provenance if isinstance(provenance, Provenance) else Provenance.from_json(provenance or {})
    with new_folder(folder, _ADAPTERS_FOLDER, overwrite=overwrite) as new:
        leaves = {name: Leaf(array.shape, array.dtype) for name, array in factors.items()}
        with LeafWriter(new / FACTORS_FILE, leaves) as file:
            for name, array in factors.items():
                file.write(name, array)
        about = {
            "schema": _SCHEMA,
            "alpha": adapters.alpha,
            "ranks": {path: int(down.shape[-2]) for path, (down, _) in adapters.factors.items()},
            "base": {"config": to_json(base.config), "leaves_sha256": base_hashes(base)},
            "provenance": replace(given, leaves_sha256=file.checksums).to_json(),
        }
        write_json(new / ADAPTERS_FILE, about)
    return folder


def load_adapters(folder: Path | str, *, base: CLIP | None) -> Adapters:
    """Read a folder of adapters, for ``surgery.attach``.

    Args:
        folder: a local path, or one that starts with ``gs://`` or ``s3://``.
        base: the model without factors to which they will be attached; it must be the one that they were trained on.
            None accepts every model: use it to attach factors to another model on purpose.

    Raises:
        CheckpointError: not a folder of adapters; a file is missing, damaged or of a later version; factors are not
            those that the folder describes; or ``base`` is another model, of which the message names the leaves.
    """
    with named(folder):
        return _load(local_copy(folder), base=base)


def base_hashes(model: CLIP) -> dict[str, str]:
    """SHA-256 of each leaf in float32, as ``provenance.json`` of a model folder has it."""
    return {
        path: one
        for path, leaf in leaves_by_path(model).items()
        for one in array_hashes({path: np.asarray(jax.device_get(leaf), np.float32)}).values()
    }


def _load(folder: Path, *, base: CLIP | None) -> Adapters:
    expect_kind(folder, "folder of adapters")
    path = folder / ADAPTERS_FILE
    about = _read(path)
    if about.get("schema") != _SCHEMA:
        raise CheckpointError(
            f"{path} has schema {about.get('schema')!r}, this version of clipa_eqx reads {_SCHEMA}; use the version "
            "that wrote it"
        )
    match about:
        case {
            "alpha": float() | int() as alpha,
            "ranks": dict() as ranks,
            "base": {"config": dict() as config, "leaves_sha256": dict() as leaves},
            "provenance": dict() as provenance,
        } if alpha > 0 and ranks:
            pass
        case _:
            raise CheckpointError(
                f"{path} lacks a positive alpha, ranks, base or provenance; restore it, or save the adapters again"
            )
    with LeafReader(folder / FACTORS_FILE) as file:
        factors = {name: np.array(file.read(name)) for name in file.leaves}
    _check_factors(factors, ranks, where=folder / FACTORS_FILE)
    recorded = recorded_hashes(Provenance.from_json(provenance), of_optimizer=False)
    check_hashes(array_hashes(factors), recorded, where=str(folder / FACTORS_FILE))
    _check_finite(factors, where=str(folder / FACTORS_FILE))
    if base is not None:
        try:
            trained_on = from_json(CLIPConfig, config, where=f"base of {path}")
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
        _check_base(folder, base, trained_on, leaves)
    pairs = {one: (jnp.asarray(factors[one + _DOWN]), jnp.asarray(factors[one + _UP])) for one in ranks}
    return Adapters(factors=pairs, alpha=float(alpha))


def _check_base(folder: Path, base: CLIP, config: CLIPConfig, recorded: Mapping[str, str]) -> None:
    found = base_hashes(base)
    problems = [
        f"{name}: {theirs!r} there, {ours!r} here"
        for name, theirs, ours in config_changes(config, base.config)
        if name.rsplit(".", 1)[-1] in NUMERIC_FIELDS
    ]
    problems += [f"{path}: other values" for path in recorded if path in found and found[path] != recorded[path]]
    problems += [f"{path}: missing here" for path in recorded if path not in found]
    problems += [f"{path}: missing there" for path in found if path not in recorded]
    if problems:
        raise CheckpointError(
            f"{folder} was trained on another base model than this one; load the model it was trained on, or give "
            f"base=None to attach it to this one anyway, {listed(problems)}"
        )


def _check_factors(factors: Mapping[str, np.ndarray], ranks: Mapping[str, Any], *, where: Path) -> None:
    wanted = {path + name: rank for path, rank in ranks.items() for name in (_DOWN, _UP)}
    problems = [f"missing: {name}" for name in wanted if name not in factors]
    problems += [f"unused: {name}" for name in factors if name not in wanted]
    problems += [
        f"shape: {name} is {array.shape}, expected rank {wanted[name]}"
        for name, array in factors.items()
        if name in wanted and (array.ndim < 2 or array.shape[-2 if name.endswith(_DOWN) else -1] != wanted[name])
    ]
    if problems:
        raise CheckpointError(f"{where} does not have the factors that {ADAPTERS_FILE} lists, {listed(problems)}")


def _check_finite(factors: Mapping[str, np.ndarray], *, where: str) -> None:
    problems = list(_not_finite(factors))
    if problems:
        raise CheckpointError(f"{where}: factors are damaged, {listed(problems)}")


def _not_finite(factors: Mapping[str, np.ndarray]) -> Iterator[str]:
    return (f"not finite: {name}" for name, array in factors.items() if not np.isfinite(array.astype("f4")).all())


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path, error=CheckpointError, hint="every folder of adapters has it; save them again")


def _is_adapters_folder(folder: Path) -> bool:
    try:
        return cast("object", _read(folder / ADAPTERS_FILE).get("schema")) == _SCHEMA
    except ClipaError:
        return False


_ADAPTERS_FOLDER = FolderKind(
    name="folder of adapters", files=frozenset({ADAPTERS_FILE, FACTORS_FILE}), is_one=_is_adapters_folder
)
