"""StableHLO: each tower as one program for CPU, GPU and TPU and for any batch size, with its weights as arguments.

The weights are arguments and not constants of the program. JAX would hold constants in the traced function, in the
module and in its bytes at once, which is four times the 4 GB of an H/14; arguments are written once, leaf by leaf, can
be placed on a mesh, and let one program serve other weights of the same shapes.
"""

import importlib
import logging
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax import export

from clipa_eqx.errors import ConversionError, counted, pip_install
from clipa_eqx.progress import waiting
from clipa_eqx.replacing import new_folder
from clipa_eqx.saved.model import LoadedModel, load_model
from clipa_eqx.trees import count_params
from conversion.export.description import README_FILE, USE, export_kind, readme, write_description
from conversion.export.towers import Dtype, Tower, TowerName, tower_of

PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE: dict[Dtype, float] = {"float32": 1e-5, "bfloat16": 1e-2}
"""The program is compiled apart from the model, so its embeddings may differ by rounding."""

_KIND = export_kind("stablehlo", *(f"{name}.{end}" for name in ("image", "text") for end in ("stablehlo", "npz")))

_log = logging.getLogger(__name__)

_LOADER = """
import json
from pathlib import Path

import jax
import numpy as np
from jax import export

about = json.loads(Path("model.json").read_text())


def load(tower):
    program = export.deserialize(bytearray(Path(f"{tower}.stablehlo").read_bytes()))
    with np.load(f"{tower}.npz") as file:
        weights = jax.device_put(dict(file))
    run = jax.jit(program.call)
    return lambda batch: np.asarray(run(weights, batch))

"""


def export_stablehlo(
    folder: Path,
    target: Path,
    *,
    tower: TowerName | Literal["both"] = "both",
    dtype: Dtype = "float32",
    overwrite: bool = False,
) -> Path:
    """Write a folder that JAX alone can load; it appears once each program was loaded again and compared.

    Args:
        folder: a model folder.
        target: the folder to write.
        tower: the towers to export.
        dtype: dtype of weights and activations.
        overwrite: replace a folder that this function wrote.

    Raises:
        CheckpointError: ``folder`` is not a model folder, or ``target`` exists and must not be replaced.
        ConversionError: the package flatbuffers is missing, a program does not compute what the model computes, or
            ``target`` cannot be written.
    """
    _check_packages()
    names: tuple[TowerName, ...] = ("image", "text") if tower == "both" else (tower,)
    try:
        with new_folder(target, _KIND, overwrite=overwrite, sources=[folder]) as new:
            loaded = load_model(folder)
            towers = {name: _write_tower(new, loaded, name, dtype) for name in names}
            write_description(
                new,
                loaded,
                format_name="stablehlo",
                towers=towers,
                dtype=dtype,
                platforms=list(PLATFORMS),
                jax=jax.__version__,
            )
            (new / README_FILE).write_text(_readme(loaded, tower, dtype), encoding="utf-8")
    except OSError as error:
        raise ConversionError(f"{target} cannot be written ({error}); no partial folder was left") from error
    _log.info("%s: see its %s", target, README_FILE)
    return target


def _write_tower(new: Path, loaded: LoadedModel, name: TowerName, dtype: Dtype) -> dict[str, Any]:
    with waiting(f"exporting the {name} tower"):
        tower = tower_of(loaded.model, name, dtype=dtype)
        program, weights = new / f"{name}.stablehlo", new / f"{name}.npz"
        exported = _traced(tower)
        program.write_bytes(exported.serialize(vjp_order=0))
        arrays: dict[str, Any] = {path: np.asarray(leaf) for path, leaf in tower.weights.items()}
        np.savez(weights, **arrays)
        largest = tower.difference(_run(program, weights, tower), tolerance=TOLERANCE[dtype])
    _log.info(
        "%s tower: %s, embeddings of fixed inputs within %.1e of the model's",
        name,
        counted(count_params(tower.weights), "parameter"),
        largest,
    )
    return {
        "program": program.name,
        "weights": weights.name,
        "input": tower.input,
        "output": tower.output,
        "calling_convention": exported.calling_convention_version,
        "largest_difference": largest,
    }


def _traced(tower: Tower) -> export.Exported:
    (batch,) = export.symbolic_shape("batch")
    rows = jax.ShapeDtypeStruct((batch, *tower.examples.shape[1:]), tower.examples.dtype)
    weights = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in tower.weights.items()}
    return export.export(jax.jit(tower.encode), platforms=PLATFORMS)(weights, rows)


def _run(program: Path, weights: Path, tower: Tower) -> np.ndarray:
    """Embeddings of the examples by the files that were written."""
    loaded = export.deserialize(bytearray(program.read_bytes()))
    with np.load(weights) as file:
        return np.asarray(jax.jit(loaded.call)(dict(file), tower.examples))


def _check_packages() -> None:
    try:
        importlib.import_module("flatbuffers")
    except ImportError as error:
        raise ConversionError(
            f"JAX needs the package flatbuffers to write and to read StableHLO programs: {pip_install('flatbuffers')}"
        ) from error


def _readme(loaded: LoadedModel, tower: TowerName | Literal["both"], dtype: Dtype) -> str:
    bits = (
        "\nThe weights are bfloat16; the `.npz` files hold their bits as uint16, which the program takes as they are.\n"
        if dtype == "bfloat16"
        else ""
    )
    return readme(
        loaded,
        title="Towers of a CLIP model as StableHLO programs",
        needs="`jax`, `numpy` and `flatbuffers` (`pip install jax flatbuffers`)",
        example=_LOADER.lstrip() + "\n" + USE[tower].strip(),
        notes=f"""
The programs run on {", ".join(PLATFORMS)}, for any batch size; JAX compiles each batch size once. They were written by
JAX {jax.__version__}. JAX reads programs of older versions for at least six months. The weights are arguments: a dict
of arrays by leaf path. There are no derivatives in the programs.
{bits}""",
    )
