"""The work of ``clipa-search``: the index is opened or brought up to date, and the queries are answered."""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from clipa_eqx.cache_folder import cache_folder
from clipa_eqx.commands import command_line
from clipa_eqx.devices import in_words, open_devices
from clipa_eqx.errors import ConfigError, DataError, counted
from clipa_eqx.file_lock import locked_folder
from clipa_eqx.programs.encoders import load_encoder
from clipa_eqx.replacing import write_text
from clipa_eqx.reports.gallery import Card, Results, gallery
from clipa_eqx.saved.kinds import kind_of, what_is
from clipa_eqx.search.approximate import TESTED_K, TESTED_ROWS, approximate_rows, open_graph
from clipa_eqx.search.embedding import is_embeddings
from clipa_eqx.search.encoder import Encoder, check_same_model, encode_items
from clipa_eqx.search.exact import Best, best_rows
from clipa_eqx.search.index import SearchIndex, open_embeddings
from clipa_eqx.search.inputs import Item
from clipa_eqx.search.photos import (
    changes_of,
    check_place,
    is_photo_index,
    open_photos,
    read_photo_index,
    shrink,
    update,
)

_log = logging.getLogger(__name__)


class Query(NamedTuple):
    """A text, or the path of an image file."""

    content: str | Path


@dataclass(frozen=True, kw_only=True)
class Request:
    """A search to do.

    Attributes:
        index: a folder of embeddings, a folder of photos, or the index of one.
        queries: at least one.
        k: results per query.
        model: a model folder or a run folder; None takes the one that the index names.
        photo_index: folder for the index of a folder of photos; None is a place in the cache.
        batch_size: photos at once.
        is_approximate: search a graph of neighbors with usearch, instead of every row.
    """

    index: Path
    queries: Sequence[Query]
    k: int
    model: Path | None = None
    photo_index: Path | None = None
    batch_size: int = 64
    is_approximate: bool = False


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Results of all queries, and a sentence about what was searched."""

    results: Sequence[Results]
    about: str


def search(request: Request) -> Answer:
    """Answer the queries; a folder of photos is indexed first.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: there is no index, it was made with another model, or no model is known.
        DataError: a query or the folder of photos cannot be read.
    """
    _check_queries(request)
    if is_embeddings(request.index):
        if request.photo_index is not None:
            raise ConfigError(f"--index has no effect: {request.index} is a folder of embeddings; leave it out")
        index, folder = open_embeddings(request.index), request.index
        encoder = _encoder(request, recorded=index.model["path"])
        check_same_model(index.model, encoder, where=str(request.index), hint="give --model with the one it names")
    else:
        encoder, index, folder = _photos(request)
    if not len(index):
        raise DataError(f"{index.title} has nothing that can be searched")
    queries = _vectors(encoder, request)
    how = "every row compared"
    if request.is_approximate:
        with locked_folder(folder, error=ConfigError, waits=True):
            graph = open_graph(index, folder)
        best = approximate_rows(graph, index, queries, k=request.k)
        how = f"approximate, recall@{TESTED_K} of {TESTED_ROWS} sampled rows {graph.recall:.3f}"
    else:
        best = best_rows(index.blocks(), queries, k=request.k)
    what = counted(len(index), "image" if index.kind == "images" else "text")
    return Answer(
        results=[_results(index, query, best, row) for row, query in enumerate(request.queries)],
        about=_shown(f"{what} of {index.title}, model {encoder.path}, {how}"),
    )


def _check_queries(request: Request) -> None:
    if not request.queries:
        raise ConfigError("nothing is searched for; give --text TEXT or --image FILE")
    if request.k < 1:
        raise ConfigError(f"-k is {request.k}; it must be at least 1")
    for query in request.queries:
        if isinstance(query.content, Path) and not query.content.is_file():
            raise DataError(f"--image {query.content} is not a file; give an image file")


def _photos(request: Request) -> tuple[Encoder, SearchIndex, Path]:
    given = request.index
    if is_photo_index(given):
        begun = read_photo_index(given)
        folder, index = (given if begun is None else begun.folder), given
    elif kind_of(given) == "other folder":
        folder, index = given, request.photo_index or _cached(given)
        check_place(index, folder)
        begun = read_photo_index(index)
    else:
        hint = (
            f"embed a record folder first ({command_line('embed', 'MODEL', '--images', given, '--out', 'DIR')})"
            if kind_of(given) == "record folder"
            else ""
        )
        raise ConfigError(f"{what_is(given)}; give a folder of photos or of embeddings{'; ' if hint else ''}{hint}")
    if begun is not None and begun.folder != folder.resolve():
        raise ConfigError(f"the index {index} is of {begun.folder}, not of {folder}; name another --index")
    encoder = _encoder(request, recorded=None if begun is None else begun.model["path"])
    if begun is not None:
        check_same_model(begun.model, encoder, where=f"the index {index}", hint="name another --index for this model")
    _log.info("the index of %s is in %s", folder, index)
    with locked_folder(index, error=ConfigError, waits=True):
        changes = changes_of(index, folder)
        if not changes.files:
            raise DataError(f"{folder} has no images; give a folder of photos or of embeddings")
        _log.info(
            "%s: %d new or changed, %d gone", counted(len(changes.files), "photo"), len(changes.new), changes.dropped
        )
        if changes.new or changes.damaged or begun is None:
            update(index, folder, encoder, changes, batch_size=request.batch_size)
        shrink(index, folder)
        return encoder, open_photos(index, folder), index


def _cached(folder: Path) -> Path:
    real = folder.resolve()
    return cache_folder("photos", f"{real.name}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:12]}")


def _encoder(request: Request, *, recorded: str | None) -> Encoder:
    model = request.model or (None if recorded is None else Path(recorded))
    if model is None:
        raise ConfigError(f"{request.index} has no index yet; give --model MODEL_OR_RUN to make one")
    if request.model is None and model.is_absolute() and not model.exists():
        raise ConfigError(f"the model of the index, {model}, is not there anymore; give its new place with --model")
    _log.info("searching on %s", in_words(open_devices()))
    return load_encoder(model)


def _vectors(encoder: Encoder, request: Request) -> Float32[np.ndarray, "queries embed"]:
    """Unit vectors of the queries; texts and images are encoded in one batch each."""
    found = np.zeros((len(request.queries), encoder.width), np.float32)
    for is_images in (False, True):
        items = [
            Item(number, str(query.content), query.content)
            for number, query in enumerate(request.queries)
            if isinstance(query.content, Path) == is_images
        ]
        for chunk in encode_items(encoder, iter(items), batch_size=max(len(items), 1), is_images=is_images):
            for item in chunk.unreadable:
                raise DataError(f"--image {item.id}: {item.content}")
            found[[item.number for item in chunk.items]] = chunk.vectors
    return found


def _results(index: SearchIndex, query: Query, best: Best, row: int) -> Results:
    content = query.content
    return Results(
        query=_shown(str(content)),
        query_image=content.read_bytes() if isinstance(content, Path) else None,
        cards=[
            _card(index, int(number), float(score))
            for number, score in zip(best.numbers[row], best.scores[row], strict=True)
        ],
    )


def _card(index: SearchIndex, number: int, score: float) -> Card:
    found = index.find(number)
    return Card(name=_shown(found.id), score=score, image=found.image, words=found.text or "")


def _shown(text: str) -> str:
    """A text with what is not UTF-8 in the name of a file as question marks, so that it can be printed and written."""
    return text.encode("utf-8", "replace").decode()


def write_page(path: Path, answer: Answer) -> None:
    """Write the results as a page. Raises ConfigError if the file cannot be written."""
    title = answer.results[0].query if len(answer.results) == 1 else f"{len(answer.results)} searches"
    try:
        write_text(path, gallery(answer.results, title=title, about=answer.about))
    except OSError as error:
        raise ConfigError(f"--html {path} cannot be written ({error.strerror}); give another name") from error
