"""ONNX: each tower as one graph for any batch size, converted by jax2onnx and compared in onnxruntime.

Weights of more than a few bytes are in a file next to the graph, because a protobuf message holds at most 2 GiB.
"""

import importlib
import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax
from jax import export

from clipa_eqx.errors import ConversionError, counted, pip_install
from clipa_eqx.progress import waiting
from clipa_eqx.replacing import new_folder
from clipa_eqx.saved.model import LoadedModel, load_model
from clipa_eqx.trees import count_params
from conversion.export.description import README_FILE, USE, export_kind, readme, write_description
from conversion.export.towers import Tower, TowerName, tower_of

TOLERANCE = 1e-4
"""onnxruntime computes in float32 too, but in another order than XLA."""

INSTALL = (
    f"{pip_install('onnx', 'onnx-ir', 'onnxruntime', 'flax')} and then pip install --no-deps jax2onnx==0.17.1, whose "
    "requirements exclude the version of Orbax that this package needs, although it does not use it"
)

_KIND = export_kind("onnx", *(f"{name}.onnx{end}" for name in ("image", "text") for end in ("", ".data")))
_PACKAGES = ("jax2onnx", "onnx_ir", "onnxruntime")

_log = logging.getLogger(__name__)

_EXAMPLE = """
import json
from pathlib import Path

import numpy as np
import onnxruntime

about = json.loads(Path("model.json").read_text())


def load(tower):
    session = onnxruntime.InferenceSession(f"{tower}.onnx")
    return lambda batch: session.run(None, {session.get_inputs()[0].name: batch})[0]

"""


def export_onnx(
    folder: Path, target: Path, *, tower: TowerName | Literal["both"] = "both", overwrite: bool = False
) -> Path:
    """Write a folder of ONNX graphs in float32; it appears once onnxruntime has computed the model's embeddings.

    Args:
        folder: a model folder.
        target: the folder to write.
        tower: the towers to export.
        overwrite: replace a folder that this function wrote.

    Raises:
        CheckpointError: ``folder`` is not a model folder, or ``target`` exists and must not be replaced.
        ConversionError: packages are missing, they cannot convert a tower, the graph does not compute what the model
            computes, or ``target`` cannot be written.
    """
    for package in _PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConversionError(f"--to onnx needs the package {package} ({error}): {INSTALL}") from error
    names: tuple[TowerName, ...] = ("image", "text") if tower == "both" else (tower,)
    try:
        with new_folder(target, _KIND, overwrite=overwrite, sources=[folder]) as new:
            loaded = load_model(folder)
            # Before the first conversion, which changes functions of JAX while it traces.
            prepared = {name: tower_of(loaded.model, name, dtype="float32") for name in names}
            towers = {name: _write_tower(new, one) for name, one in prepared.items()}
            write_description(new, loaded, format_name="onnx", towers=towers, dtype="float32")
            (new / README_FILE).write_text(_readme(loaded, tower), encoding="utf-8")
    except OSError as error:
        raise ConversionError(f"{target} cannot be written ({error}); no partial folder was left") from error
    _log.info("%s: see its %s", target, README_FILE)
    return target


def _write_tower(new: Path, tower: Tower) -> dict[str, Any]:
    path = new / f"{tower.name}.onnx"
    with waiting(f"converting the {tower.name} tower to ONNX"), _quiet():
        graph = _converted(tower)
        importlib.import_module("onnx_ir").save(graph, path, external_data=f"{path.name}.data")
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # it warns of every constant that is not used
        try:
            session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            found = session.run(None, {_input(tower): tower.examples})[0]
        except Exception as error:  # it has a class per kind of failure, without a common one
            raise ConversionError(
                f"onnxruntime {runtime.__version__} cannot run the graph of the {tower.name} tower: {_reason(error)}; "
                f"nothing was written. {INSTALL}"
            ) from error
        largest = tower.difference(found, tolerance=TOLERANCE)
    _log.info(
        "%s tower: %s, embeddings of fixed inputs within %.1e of the model's",
        tower.name,
        counted(count_params(tower.weights), "parameter"),
        largest,
    )
    return {
        "graph": path.name,
        "input": tower.input,
        "output": tower.output,
        "opset": int(graph.opset_imports[""]),
        "largest_difference": largest,
    }


def _converted(tower: Tower) -> Any:
    """The graph with the weights as constants."""
    (batch,) = export.symbolic_shape("batch")
    rows = jax.ShapeDtypeStruct((batch, *tower.examples.shape[1:]), tower.examples.dtype)
    convert = importlib.import_module("jax2onnx").to_onnx
    try:
        return convert(
            lambda inputs: tower.encode(tower.weights, inputs),
            [rows],
            model_name=f"clipa_eqx_{tower.name}",
            return_mode="ir",
            input_names=[_input(tower)],
            output_names=["embeddings"],
        )
    except Exception as error:  # an operation that it does not know ends in an error of any class
        raise ConversionError(
            f"jax2onnx cannot convert the {tower.name} tower with JAX {jax.__version__}: "
            f"{_reason(error)}; nothing was written. {INSTALL}"
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


def _input(tower: Tower) -> str:
    return "images" if tower.name == "image" else "tokens"


@contextmanager
def _quiet() -> Generator[None]:
    """Hide what the converter logs: shapes that it does not record, and its own examples that need other packages."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _readme(loaded: LoadedModel, tower: TowerName | Literal["both"]) -> str:
    return readme(
        loaded,
        title="Towers of a CLIP model as ONNX graphs",
        needs="`numpy` and `onnxruntime`",
        example=_EXAMPLE.lstrip() + "\n" + USE[tower].strip(),
        notes="""
The graphs are float32 and take any batch size. Each `.onnx` file needs the `.onnx.data` file of its name next to it.
""",
    )
