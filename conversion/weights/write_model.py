"""Writer of model folders from foreign files, one tensor at a time, with optimizer state, provenance and self-check."""

import importlib.metadata
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.errors import ConversionError
from clipa_eqx.progress import progress_bar
from clipa_eqx.replacing import check_replaceable, new_folder
from clipa_eqx.saved.description import (
    MODEL_FOLDER,
    OPTIMIZER_FILE,
    check_parts,
    write_description,
    write_provenance,
)
from clipa_eqx.saved.kinds import WEIGHTS_FILE
from clipa_eqx.saved.leaf_file import Leaf, LeafReader, LeafSlice, LeafWriter
from clipa_eqx.saved.leaf_shapes import leaf_shapes
from clipa_eqx.saved.optimizer_file import Counts, Kind, write_optimizer_state
from clipa_eqx.saved.provenance import Provenance, Source
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from conversion.weights.moments import Moments
from conversion.weights.rules import RuleTable, Tensor, raise_problems
from conversion.weights.self_check import embed_fixed_inputs
from conversion.weights.tensors import InBackground, TensorFile, sha256_of

FLOAT32 = np.dtype(np.float32)
_COMPARED_AT_ONCE = 2


class Converted(NamedTuple):
    """The model folder that was written, and its provenance."""

    folder: Path
    provenance: Provenance


def write_model(
    source: TensorFile,
    table: RuleTable,
    folder: Path,
    *,
    tokenizer: Tokenizer,
    preprocess: EvalImageConfig,
    provenance: Provenance,
    moments: Moments | None = None,
    overwrite: bool = False,
) -> Converted:
    """Convert a foreign file. The folder appears only when everything is written and checked.

    Args:
        source: the weights.
        table: the rules of the source's format, for the config of the model.
        folder: the model folder to write.
        provenance: result of ``import_provenance``. Source hash, converter, checksums of the leaves and the results of
            the self-check are added here.
        moments: the optimizer state, if it is to be imported.
        overwrite: replace a model folder.

    Raises:
        ConversionError: lists every missing, unused, mis-shaped, damaged or non-finite tensor at once.
        CheckpointError: the folder exists (and not ``overwrite``), or holds other files than a model, or the source.
        ConfigError: tokenizer or preprocessing do not fit the model.
    """
    config = table.config
    check_parts(config, tokenizer, preprocess)
    check_replaceable(folder, MODEL_FOLDER, overwrite=overwrite, sources=[source.path])
    raise_problems(_problems(source, table, moments), where=str(source.path))
    size = sum(4 * int(np.prod(shape)) for shape in leaf_shapes(config).values())
    digest = InBackground(lambda: sha256_of(source.path))
    try:
        _check_space(folder, 3 * size if moments else size)
        with (
            new_folder(folder, MODEL_FOLDER, overwrite=overwrite, sources=[source.path]) as new,
            _bar("convert", (2 if moments is None else 4) * size) as bar,
        ):
            checksums, compared = _write_weights(source, table, new / WEIGHTS_FILE, bar.update)
            if moments is not None:
                checksums |= _write_moments(moments, table, new / OPTIMIZER_FILE, bar.update)
            write_description(new, config, tokenizer=tokenizer, preprocess=preprocess, provenance=provenance)
            embeddings = embed_fixed_inputs(new, advance=bar.update)
            if not embeddings.is_finite:
                raise ConversionError(
                    f"{source.path}: all weights are finite, but their embeddings of fixed inputs are not; "
                    "the weights do not work with this config"
                )
            complete = replace(
                provenance,
                source=Source(name=source.path.name, sha256=digest.result()),
                converter=f"clipa_eqx {importlib.metadata.version('clipa_eqx')}",
                parameters=size // 4,
                self_check={
                    "finite": True,
                    "round_trip": f"{compared} of {compared} tensors, exported again, have their original bytes",
                    "embeddings": embeddings.report(),
                },
                leaves_sha256=checksums,
            )
            write_provenance(new, complete)
    except OSError as error:
        raise ConversionError(f"{folder} cannot be written ({error}); nothing was left there") from error
    return Converted(folder, complete)


def _problems(source: TensorFile, table: RuleTable, moments: Moments | None) -> list[str]:
    problems = table.check(source.tensors)
    if moments is not None:
        for kind, file in (("first moment", moments.mu), ("second moment", moments.nu)):
            found = table.check(file.tensors, absent=moments.absent)
            problems += [f"{kind}: {problem}" for problem in found]
        kinds = {info.dtype for info in moments.mu.tensors.values()}
        if len(kinds) > 1:
            problems.append(f"first moment: dtypes {', '.join(sorted(map(str, kinds)))} are mixed, expected one")
        problems += [
            f"second moment: {name} is {info.dtype}, expected float32"
            for name, info in moments.nu.tensors.items()
            if info.dtype != FLOAT32
        ]
    return problems


def _write_weights(
    source: TensorFile, table: RuleTable, path: Path, advance: Callable[[int], object]
) -> tuple[dict[str, str], int]:
    """Write all leaves, and compare each tensor, exported again, with the source, bit by bit.

    The comparison runs in a thread and costs no extra time, because the disk is slower.

    Returns:
        the checksums of the leaves, and the number of tensors that were compared.
    """
    leaves = {name: Leaf(shape, FLOAT32) for name, shape in leaf_shapes(table.config).items()}
    problems: list[str] = []

    def compare(tensor: Tensor, written: LeafReader) -> None:
        ours = tensor.placed.export(written.read)
        # float32 holds bfloat16 and float16 exactly, so casting back must give the same bits.
        if not np.array_equal(_bits(ours.astype(tensor.values.dtype, copy=False)), _bits(tensor.values)):
            problems.append(f"round trip: {tensor.placed.name}, exported again, has other values; please report this")
        advance(ours.nbytes)

    compared, pending = 0, deque[Future[None]]()
    with LeafWriter(path, leaves) as writer, LeafReader(path) as written, ThreadPoolExecutor(1) as checker:
        for tensor in table.read(source):
            for name, layer, values in tensor.slices:
                writer.write(name, values, layer=layer)
            if tensor.placed.computed is None:
                compared += 1
                pending.append(checker.submit(compare, tensor, written))
            while len(pending) > _COMPARED_AT_ONCE:
                pending.popleft().result()
        for future in pending:
            future.result()
    raise_problems(problems, where=str(source.path))
    return writer.checksums, compared


def _write_moments(moments: Moments, table: RuleTable, path: Path, advance: Callable[[int], object]) -> dict[str, str]:
    absent = set(moments.absent)

    def slices() -> Iterator[tuple[Kind, LeafSlice]]:
        both: tuple[tuple[Kind, TensorFile], ...] = (("mu", moments.mu), ("nu", moments.nu))
        for kind, file in both:
            for tensor in table.read(file, absent=moments.absent, keep_dtype=True, are_squares=kind == "nu"):
                for one in tensor.slices:
                    yield kind, one
                    advance(one.values.size * 4)

    checksums = write_optimizer_state(
        path,
        leaf_shapes(table.config),
        slices(),
        counts=Counts(moments.updates, moments.schedule_steps, moments.about),
        mu_dtype=next((info.dtype for info in moments.mu.tensors.values()), FLOAT32),
        frozen=[(rule.path, one.layer) for name, one in table.placed.items() if name in absent for rule in one.rules],
    )
    return {f"{OPTIMIZER_FILE}/{name}": digest for name, digest in checksums.items()}


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint16 if array.dtype.itemsize == 2 else np.uint32)


def _check_space(folder: Path, needed: int) -> None:
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ConversionError(
            f"{folder} needs {needed / 1e9:.1f} GB, {parent} has {free / 1e9:.1f} GB left; free some space or choose "
            "another folder"
        )


def _bar(what: str, total: int) -> Any:
    return progress_bar(what=what, total=total, unit="B")
