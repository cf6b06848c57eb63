"""Shards of embeddings: a file of vectors, and a listing next to it that makes the shard complete."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from jaxtyping import Float

from clipa_eqx.data.verification import hash_file
from clipa_eqx.errors import DataError, pip_install
from clipa_eqx.json_files import read_json_object
from clipa_eqx.replacing import new_file, remove_leftovers
from clipa_eqx.search.encoder import Chunk

VectorType = Literal["float32", "float16"]


class Unreadable(NamedTuple):
    """An input without a vector: its number, its id, and the reason."""

    number: int
    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Everything about a shard except its vectors; one entry per row, in order.

    Attributes:
        ids: ids of the items.
        numbers: numbers of their inputs.
        texts: the texts; None for images.
        unreadable: inputs of the shard that have no vector.
        truncated: texts that are longer than the text tower.
        vectors_sha256: of the file of vectors.
    """

    ids: Sequence[str]
    numbers: Sequence[int]
    texts: Sequence[str] | None
    unreadable: Sequence[Unreadable]
    truncated: int
    vectors_sha256: str


def vectors_path(folder: Path, shard: int) -> Path:
    """The file of vectors of a shard."""
    return folder / f"{shard:05}.npy"


def listing_path(folder: Path, shard: int) -> Path:
    """The listing of a shard, written last."""
    return folder / f"{shard:05}.json"


def parquet_path(folder: Path, shard: int) -> Path:
    """The same shard as Parquet."""
    return folder / f"{shard:05}.parquet"


def write_shard(
    folder: Path,
    shard: int,
    chunks: Iterable[Chunk],
    *,
    width: int,
    dtype: VectorType,
    is_images: bool,
    with_parquet: bool = False,
    destination: Path | None = None,
) -> Listing:
    """Encode and write a shard; it is complete when its listing is there.

    Args:
        width: length of the vectors.
        dtype: type in which they are stored.
        with_parquet: also write it as Parquet.
        destination: the folder that errors name, if the shard is to be moved there.

    Raises:
        DataError: the folder cannot be written.
        ConfigError: as ``encode_items``.
    """
    found = [_without_images(chunk) for chunk in chunks] if is_images else list(chunks)
    items = [item for chunk in found for item in chunk.items]
    vectors = np.concatenate([np.zeros((0, width), np.float32), *(chunk.vectors for chunk in found)]).astype(dtype)
    ids = [item.id for item in items]
    texts = None if is_images else [cast("str", item.content) for item in items]
    try:
        with new_file(vectors_path(folder, shard), clean=False) as file, file.open("wb") as handle:
            np.save(handle, vectors)
        if with_parquet:
            _write_parquet(parquet_path(folder, shard), ids, texts, vectors)
        listing = Listing(
            ids=ids,
            numbers=[item.number for item in items],
            texts=texts,
            unreadable=[
                Unreadable(item.number, item.id, str(item.content)) for chunk in found for item in chunk.unreadable
            ],
            truncated=sum(chunk.truncated for chunk in found),
            vectors_sha256=hash_file(vectors_path(folder, shard)),
        )
        with new_file(listing_path(folder, shard), clean=False) as file:
            file.write_text(json.dumps(asdict(listing)) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{destination or folder} cannot be written ({error.strerror}); complete shards stay, and the same command "
            "resumes"
        ) from error
    return listing


def read_listing(folder: Path, shard: int) -> Listing:
    """The listing of a shard. Raises DataError if it cannot be read or is not a listing."""
    path = listing_path(folder, shard)
    hint = "delete it, and run the command that wrote the folder again"
    found: dict[str, Any] = read_json_object(path, error=DataError, hint=hint)
    try:
        unreadable = [Unreadable(*one) for one in found.pop("unreadable")]
        listing = Listing(**found, unreadable=unreadable)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not the listing of a shard ({error}); {hint}") from error
    if len(listing.ids) != len(listing.numbers):
        raise DataError(f"{path} has {len(listing.ids)} ids and {len(listing.numbers)} numbers; {hint}")
    return listing


def clean_shard(folder: Path, shard: int) -> None:
    """Delete what a killed process left of a shard that it was writing."""
    for path in (vectors_path(folder, shard), parquet_path(folder, shard), listing_path(folder, shard)):
        remove_leftovers(path)


def is_complete(folder: Path, shard: int, *, with_parquet: bool = False) -> bool:
    """Whether a shard has its listing and unchanged vectors; the vectors are read."""
    if not listing_path(folder, shard).is_file() or (with_parquet and not parquet_path(folder, shard).is_file()):
        return False
    try:
        return read_listing(folder, shard).vectors_sha256 == hash_file(vectors_path(folder, shard))
    except (OSError, DataError):
        return False


def open_vectors(folder: Path, shard: int, *, rows: int) -> Float[np.ndarray, "rows embed"]:
    """The vectors of a shard, read from disk as they are used.

    Raises:
        DataError: the file is missing, damaged, or has another number of rows than the listing.
    """
    path = vectors_path(folder, shard)
    hint = "run the command that wrote the folder again"
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False) if rows else np.load(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); {hint}") from error
    if found.ndim != 2 or found.dtype.name not in ("float32", "float16") or len(found) != rows:
        raise DataError(f"{path} holds {found.dtype}{found.shape}, expected vectors of {rows} rows; {hint}")
    return found


def _without_images(chunk: Chunk) -> Chunk:
    """The chunk without the content of its images, which would be in memory until the shard is complete."""
    return replace(chunk, items=[item._replace(content=b"") for item in chunk.items])


def _write_parquet(path: Path, ids: Sequence[str], texts: Sequence[str] | None, vectors: np.ndarray) -> None:
    pyarrow, parquet = import_parquet()
    flat = pyarrow.array(np.ascontiguousarray(vectors).reshape(-1))
    named = [one.encode("utf-8", "replace").decode() for one in ids]
    # The type is given: it cannot be read off a shard without rows.
    columns: dict[str, Any] = {"id": pyarrow.array(named, pyarrow.string())}
    if texts is not None:
        columns["text"] = pyarrow.array(texts, pyarrow.string())
    columns["embedding"] = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    with new_file(path, clean=False) as file:
        parquet.write_table(pyarrow.table(columns), file)


def import_parquet() -> tuple[Any, Any]:
    """The packages that write Parquet. Raises DataError if they are not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"Parquet needs the package pyarrow; install it with `{pip_install('pyarrow')}`") from error
    return pyarrow, parquet
