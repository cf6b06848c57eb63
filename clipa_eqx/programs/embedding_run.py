"""The work of ``clipa-embed``: inputs, model and folder are checked, the shards written, and the result described."""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from clipa_eqx.agreement import refused_together
from clipa_eqx.data.addresses import is_url
from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.devices import in_words, open_devices
from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.evals.gathering import sum_processes
from clipa_eqx.evals.prompts import PromptReduction
from clipa_eqx.locks.held import Lock
from clipa_eqx.programs.encoders import load_encoder
from clipa_eqx.saved.kinds import kind_of, what_is
from clipa_eqx.search.embedding import EmbeddingOptions, Summary, begin, check_folder, embed, finish
from clipa_eqx.search.embedding_lock import end_of_work, fence_of, locked, refused_if_late
from clipa_eqx.search.encoder import Encoder
from clipa_eqx.search.inputs import Inputs, image_folder_inputs, record_inputs, text_file_inputs

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """An embedding to do.

    Attributes:
        model: a model folder, or a run folder.
        images: a folder with image files, or a record folder; None if texts are embedded.
        texts: a text file, or a record folder.
        out: the folder to write.
        options: settings of that folder.
        image_mode, text_reduction, mesh: as in ``load_encoder``.
    """

    model: Path
    images: str | None
    texts: str | None
    out: Path
    options: EmbeddingOptions
    image_mode: Literal["exact", "fast"] | None = None
    text_reduction: PromptReduction | None = None
    mesh: tuple[int, int, int] | None = None


def run_embedding(request: Request) -> Summary:
    """Write the missing shards of a folder of embeddings, with all processes of the program, each its share.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: a setting is wrong, or the folder belongs to another command.
        DataError: inputs are missing or cannot be read.
    """
    devices = open_devices()
    with refused_together("embed"):
        inputs = inputs_of(request)
    _log.info("embedding %d %s on %s", inputs.count, inputs.kind, in_words(devices))
    encoder = load_encoder(
        request.model, mesh=request.mesh, image_mode=request.image_mode, text_reduction=request.text_reduction
    )
    lock: Lock | None = None
    with ExitStack() as stack:
        with refused_together("lock the folder of embeddings"):
            if jax.process_index() == 0:
                check_folder(request.out)  # nothing is written to another folder, not even the lock
                lock = stack.enter_context(locked(request.out))
        return _embed(request, encoder, inputs, lock)


def _embed(request: Request, encoder: Encoder, inputs: Inputs, lock: Lock | None) -> Summary:
    with refused_together("begin the folder of embeddings"):
        if lock is not None:
            begin(request.out, encoder.identity, inputs, request.options)
        fence = fence_of(request.out)
        if fence is None:
            raise ConfigError(
                f"{request.out} is not locked by process 0: is it a folder that all processes share? Give one"
            )
    with refused_together("embed its shards"), refused_if_late(request.out, lock):
        new = embed(
            request.out,
            encoder,
            inputs,
            request.options,
            fence=fence,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    total = int(sum_processes(np.array([new]))[0])
    with refused_together("finish the folder of embeddings"):
        if lock is not None:
            end_of_work(request.out, lock)
        return finish(request.out, inputs, request.options, new=total, writes=lock is not None)


def inputs_of(request: Request) -> Inputs:
    """Everything that a request embeds. Raises DataError."""
    kind: Literal["images", "texts"] = "images" if request.images is not None else "texts"
    given = request.images if request.images is not None else str(request.texts)
    if is_url(given) or kind_of(given) == "record folder":
        return record_inputs(open_records(given), kind=kind)
    if kind == "images":
        return image_folder_inputs(Path(given))
    if Path(given).is_dir():
        raise DataError(f"--texts: {what_is(given)}; give a UTF-8 file of lines, or a record folder")
    return text_file_inputs(Path(given))
