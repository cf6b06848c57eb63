"""Embeddings of all records of a folder, of their images and their captions, in order and on each process."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Int32, UInt8

from clipa_eqx.agreement import refused_together, taken_together
from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.first_records import first_records
from clipa_eqx.data.records import Record
from clipa_eqx.errors import DataError
from clipa_eqx.evals.counting import EncodeImages
from clipa_eqx.evals.encode import local_rows
from clipa_eqx.evals.gathering import put_rows, sum_processes
from clipa_eqx.progress import progress_bar
from clipa_eqx.tokenizer.wordpiece import Tokenizer

EncodeTexts = Callable[[Int32[np.ndarray, "batch length"]], Array | np.ndarray]


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """A record as a row of a batch: ``image`` uint8[height width 3].

    Attributes:
        prepare_image: from encoded bytes to pixels at the size of the model. The transform can be pickled if it can.
    """

    prepare_image: Callable[[bytes], UInt8[np.ndarray, "height width 3"]]

    def __call__(self, record: Record) -> dict[str, np.ndarray]:
        """Make the row of a record. Raises DataError for a damaged image."""
        return {"image": self.prepare_image(record.image)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Captions:
    """The tokenized captions of this process's share of the records, and how many each record has.

    Attributes:
        tokens: ids of the captions of records ``process, process + processes, ...``, in order.
        counts: captions of every record, of all processes.
        truncated: captions over all processes that are longer than the text tower.
    """

    tokens: Int32[np.ndarray, "own length"]
    counts: Int[np.ndarray, " records"]
    truncated: int

    @property
    def owner(self) -> Int[np.ndarray, " captions"]:
        """For each caption of all processes, in the order of records, the number of its record."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def check_captioned(source: RecordSource) -> None:
    """Check a few records, so that a folder without captions is found before anything is computed.

    Raises:
        DataError: the folder has no records; a record that was read is damaged or has no caption.
    """
    if not len(source):
        raise DataError(f"data folder {source.folder} has no records; there is nothing to score")
    for record in first_records(source):
        if isinstance(record, DataError):
            raise record
        if not record.captions:
            raise _no_caption(source, record)


def read_captions(
    source: RecordSource,
    *,
    tokenizer: Tokenizer,
    length: int,
    reduction: Literal["truncate", "syntax"] = "truncate",
    most: int | None = None,
) -> Captions:
    """Read and tokenize the captions of this process's share of the records.

    Args:
        length: tokens per caption, that of the text tower.
        reduction: how longer captions are cut.
        most: take only the first captions of each record; None takes all.

    Raises:
        ConfigError: another process found a bad record.
        DataError: a record is damaged or has no caption.
    """
    mine = range(jax.process_index(), len(source), jax.process_count())
    counts = np.zeros(len(source), np.int64)
    texts: list[str] = []
    with refused_together(f"score {source.folder}"):
        for index in progress_bar(mine, what="reading captions", total=len(mine), unit="record"):
            record = source[index]
            if not record.captions:
                raise _no_caption(source, record)
            taken = record.captions[:most]
            counts[index] = len(taken)
            texts += taken
    encoded = tokenizer(texts, length=length, reduction=reduction)
    totals = sum_processes(np.append(counts, encoded.truncated))
    return Captions(tokens=encoded.ids, counts=totals[:-1], truncated=int(totals[-1]))


def image_embeddings(
    encode_image: EncodeImages, batches: Iterable[Mapping[str, np.ndarray]], *, records: int
) -> Float[np.ndarray, "records embed"]:
    """The rows that ``encode_image`` gives for all records, in their order, on each process.

    Args:
        batches: those of ``eval_stream``: ``image`` uint8[batch height width 3], ``mask`` bool[batch], ``sample_id``
            int64[batch]. Each process must pass as many batches of the same size.
        records: number of records over all processes.

    Raises:
        ConfigError: another process could not read its batch.
        DataError: there are no images.
    """
    found: np.ndarray | None = None
    for batch in taken_together(batches, what="score its images"):
        rows = local_rows(encode_image(batch["image"]), rows=len(batch["mask"]))
        found = np.zeros((records, rows.shape[1]), np.float32) if found is None else found
        put_rows(found, rows, np.where(batch["mask"], batch["sample_id"], -1))
    if found is None:
        raise DataError("the record folder has no images; there is nothing to score")
    return found


def caption_embeddings(
    encode_text: EncodeTexts, captions: Captions, *, batch_size: int
) -> Float[np.ndarray, "captions embed"]:
    """The unit embeddings of all captions, in the order of their records, on each process.

    Args:
        batch_size: captions at once over all processes; it changes no value.

    Raises:
        DataError: there are no captions.
    """
    processes, index = jax.process_count(), jax.process_index()
    local = -(-batch_size // processes)
    most = max(int(captions.counts[process::processes].sum()) for process in range(processes))
    at = np.flatnonzero(captions.owner % processes == index)  # of this process's captions among all
    found: np.ndarray | None = None
    starts = range(0, most, local)
    for start in progress_bar(starts, what="encoding captions", total=len(starts), unit="batch"):
        rows = captions.tokens[start : start + local]
        batch = np.zeros((local, captions.tokens.shape[1]), np.int32)
        batch[: len(rows)] = rows
        encoded = local_rows(encode_text(batch), rows=local)
        found = np.zeros((len(captions.owner), encoded.shape[1]), np.float32) if found is None else found
        places = np.full(local, -1)
        places[: len(rows)] = at[start : start + local]
        put_rows(found, encoded, places)
    if found is None:
        raise DataError("the record folder has no captions; there is nothing to score")
    return found


def with_progress(
    batches: Iterable[Mapping[str, np.ndarray]], *, what: str, total: int
) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield batches of this process and show how many images of its share of ``total`` were taken."""
    share = -(-total // jax.process_count())
    with progress_bar(what=what, total=share, unit="image", delay=0.0) as bar:
        for batch in batches:
            yield batch
            bar.update(int(batch["mask"].sum()))


def _no_caption(source: RecordSource, record: Record) -> DataError:
    return DataError(
        f"data folder {source.folder}: record {record.key!r} has no caption; this evaluation needs captioned records"
    )
