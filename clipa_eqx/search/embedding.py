"""Embeddings of all inputs as a folder of shards: begun, resumed, refused, finished."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from clipa_eqx.errors import ConfigError, DataError, counted
from clipa_eqx.json_files import has_format, read_json_object
from clipa_eqx.locks.fence import Fence, check_fence
from clipa_eqx.progress import progress_bar, waiting
from clipa_eqx.replacing import write_text
from clipa_eqx.search.embedding_lock import LOCK, staged_in
from clipa_eqx.search.encoder import Chunk, Encoder, EncoderIdentity, encode_items
from clipa_eqx.search.inputs import Inputs, Item
from clipa_eqx.search.shards import (
    Unreadable,
    VectorType,
    clean_shard,
    import_parquet,
    is_complete,
    listing_path,
    parquet_path,
    read_listing,
    vectors_path,
    write_shard,
)

EMBEDDINGS_FILE = "embeddings.json"
"""File that describes a folder of embeddings: options while it is written, and all shards once it is complete."""

FORMAT = "clipa_eqx embeddings 1"

_NAMED = 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    """Settings of a folder of embeddings; a resume needs the same ones.

    Attributes:
        dtype: type in which vectors are stored.
        shard_inputs: files, lines or records per shard; the work that a kill loses.
        batch_size: inputs at once over the devices of a process.
        skips_unreadable: leave out inputs that cannot be read and name them; otherwise the first one is an error.
        with_parquet: also write each shard as Parquet.

    Raises:
        ConfigError: a number below 1.
    """

    dtype: VectorType = "float32"
    shard_inputs: int = 4096
    batch_size: int = 256
    skips_unreadable: bool = False
    with_parquet: bool = False

    def __post_init__(self) -> None:
        for name in ("shard_inputs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.with_parquet:
            import_parquet()


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Result of an embedding.

    Attributes:
        rows: vectors.
        shards: shards of the folder, ``new`` of which were missing before.
        unreadable: number of inputs without a vector; ``named`` has the first ones.
        truncated: texts longer than the text tower.
    """

    rows: int
    shards: int
    new: int
    unreadable: int
    named: tuple[Unreadable, ...]
    truncated: int


def begin(folder: Path, encoder: EncoderIdentity, inputs: Inputs, options: EmbeddingOptions) -> None:
    """Write the description of a new folder, or check that a folder which was begun is of the same command.

    Raises:
        ConfigError: the folder has other contents, or was begun with another model, inputs or options; nothing in it
            changes.
    """
    own = describe(encoder, inputs, options)
    path = folder / EMBEDDINGS_FILE
    check_folder(folder)
    if not path.exists():
        _write(path, {**own, "complete": False})
        return
    begun = read_json_object(path, error=ConfigError, hint="give a new folder for the embeddings")
    problems = list(_differences(begun, own))
    if problems:
        raise ConfigError(
            f"{folder} was begun with other settings: {'; '.join(problems)}. Use the same model, inputs and options "
            "to resume, or give a new folder"
        )


def check_folder(folder: Path) -> None:
    """Check that a folder is new, empty, or begun. Raises ConfigError if it has other contents."""
    if (folder / EMBEDDINGS_FILE).exists():
        return
    # A name that starts with a dot is that of a temporary file or folder of a killed process.
    names = [one.name for one in folder.iterdir()] if folder.is_dir() else []
    others = [name for name in names if name[0] != "." and name != LOCK.name]
    if others:
        raise ConfigError(
            f"{folder} is not empty and has no {EMBEDDINGS_FILE} ({', '.join(sorted(others)[:3])}); give a new "
            "folder for the embeddings"
        )


def is_embeddings(folder: Path) -> bool:
    """Whether a folder has the description of embeddings, of any version. Another folder may have a file so named."""
    return has_format(folder / EMBEDDINGS_FILE, "clipa_eqx embeddings ")


def describe(encoder: EncoderIdentity, inputs: Inputs, options: EmbeddingOptions) -> dict[str, Any]:
    """The description of a folder before its shards are known."""
    return {
        "format": FORMAT,
        "kind": inputs.kind,
        "inputs": dict(inputs.about),
        "options": asdict(options),
        "width": encoder.width,
        "model": {"path": encoder.path, **encoder.fingerprint},
    }


def embed(
    folder: Path,
    encoder: Encoder,
    inputs: Inputs,
    options: EmbeddingOptions,
    *,
    fence: Fence,
    process_index: int = 0,
    process_count: int = 1,
) -> int:
    """Write the missing shards among every ``process_count``-th one, and return how many they were.

    Args:
        fence: of the lock of the folder.

    Raises:
        DataError: an input cannot be read and ``options`` do not skip it, or the folder cannot be written.
        ConfigError: a batch does not fit the devices.
        NonFiniteError: a vector is NaN or infinite.
        LateError: another command has the lock now.
    """
    mine = range(process_index, shard_count(inputs, options), process_count)
    with waiting("hashing complete shards"):
        missing = [shard for shard in mine if not is_complete(folder, shard, with_parquet=options.with_parquet)]
    if missing:
        clean_shard(folder, missing[0])  # shards are written in order
    done = sum(len(inputs_of_shard(shard, inputs, options)) for shard in mine if shard not in set(missing))
    total = done + sum(len(inputs_of_shard(shard, inputs, options)) for shard in missing)
    if done:
        _log.info("%d of %s are complete; the rest is embedded", len(mine) - len(missing), counted(len(mine), "shard"))
    unit = "image" if inputs.kind == "images" else "text"
    with progress_bar(what=f"embedding {unit}s", total=total, unit=unit, initial=done) as bar:
        for shard in missing:
            items = inputs.read(inputs_of_shard(shard, inputs, options))
            embed_shard(folder, shard, encoder, items, options, kind=inputs.kind, fence=fence, seen=bar.update)
    return len(missing)


def embed_shard(
    folder: Path,
    shard: int,
    encoder: Encoder,
    items: Iterator[Item],
    options: EmbeddingOptions,
    *,
    kind: Literal["images", "texts"],
    fence: Fence,
    seen: Callable[[int], object],
) -> None:
    """Write a shard that is missing or damaged, its listing last.

    Args:
        items: its items.
        fence: of the lock of the folder when the shard was given out.
        seen: called with the numbers of embedded or unreadable items as they become done.

    Raises:
        DataError, ConfigError, NonFiniteError, LateError: as ``embed``.
    """
    is_images, staged = kind == "images", staged_in(folder)
    chunks = encode_items(encoder, items, batch_size=options.batch_size, is_images=is_images)
    try:
        with staged.new_folder(fence) as made:
            listing_path(folder, shard).unlink(missing_ok=True)
            write_shard(
                Path(made),
                shard,
                _checked(chunks, skips=options.skips_unreadable, seen=seen),
                width=encoder.width,
                dtype=options.dtype,
                is_images=is_images,
                with_parquet=options.with_parquet,
                destination=folder,
            )
            if listing_path(folder, shard).exists():
                return  # a second attempt, begun because this one seemed to be lost, was faster
            for path in (vectors_path, *([parquet_path] if options.with_parquet else []), listing_path):
                staged.move_in(path(Path(made), shard), path(folder, shard), fence)
    except (OSError, DataError) as error:
        with suppress(OSError):  # another command that has the lock now is the better reason
            check_fence(folder, fence, name=LOCK.name)
        if isinstance(error, DataError):
            raise
        # Otherwise it is an input, such as a file of lines.
        is_ours = not isinstance(error.filename, str) or Path(error.filename).is_relative_to(folder)
        problem = f"{folder} cannot be written" if is_ours else f"{error.filename} cannot be read"
        raise DataError(f"{problem} ({error.strerror}); complete shards stay, and the same command resumes") from error


def finish(folder: Path, inputs: Inputs, options: EmbeddingOptions, *, new: int, writes: bool = True) -> Summary:
    """Write the complete description, once all processes have written their shards.

    Args:
        new: shards that were written now.
        writes: write the file; False only reads the listings.

    Raises:
        ConfigError, DataError: the description or the listing of a shard cannot be read.
    """
    begun = read_json_object(folder / EMBEDDINGS_FILE, error=ConfigError, hint="run the command again")
    shards: list[dict[str, Any]] = []
    named: list[Unreadable] = []
    unreadable = truncated = 0
    for shard in range(shard_count(inputs, options)):
        listing = read_listing(folder, shard)
        rows = len(listing.ids)
        shards.append({"file": vectors_path(folder, shard).name, "rows": rows, "sha256": listing.vectors_sha256})
        unreadable, truncated = unreadable + len(listing.unreadable), truncated + listing.truncated
        named += listing.unreadable[: _NAMED - len(named)]
    rows = sum(shard["rows"] for shard in shards)
    found = {
        name: value
        for name, value in begun.items()
        if name not in ("complete", "shards", "rows", "unreadable", "truncated")
    }
    counts = {"rows": rows, "unreadable": unreadable, "truncated": truncated}
    if writes:
        _write(folder / EMBEDDINGS_FILE, {**found, **counts, "shards": shards, "complete": True})
    return Summary(
        rows=rows, shards=len(shards), new=new, unreadable=unreadable, named=tuple(named), truncated=truncated
    )


def shard_count(inputs: Inputs, options: EmbeddingOptions) -> int:
    """Number of shards of a complete folder."""
    return -(-inputs.count // options.shard_inputs)


def remove_shard(folder: Path, shard: int) -> None:
    """Delete a shard, its listing first."""
    listing_path(folder, shard).unlink(missing_ok=True)
    vectors_path(folder, shard).unlink(missing_ok=True)


def inputs_of_shard(shard: int, inputs: Inputs, options: EmbeddingOptions) -> range:
    """Numbers of the inputs of a shard."""
    start = shard * options.shard_inputs
    return range(start, min(start + options.shard_inputs, inputs.count))


def _checked(chunks: Iterator[Chunk], *, skips: bool, seen: Callable[[int], object]) -> Iterator[Chunk]:
    """Pass chunks on and count them; an unreadable item is a warning or an error."""
    for chunk in chunks:
        for item in chunk.unreadable:
            if not skips:
                raise DataError(
                    f"input {item.number + 1}, {item.id}: {item.content}. Remove or replace it, or leave out what "
                    "cannot be read with --on-unreadable skip; complete shards stay"
                )
            _log.warning("left out: %s: %s", item.id, item.content)
        yield chunk
        seen(len(chunk.items) + len(chunk.unreadable))


def _differences(begun: Mapping[str, Any], own: Mapping[str, Any], *, where: str = "") -> Iterator[str]:
    for name in own:
        if name == "path":  # the same model or inputs may have moved
            continue
        one, other = begun.get(name), own[name]
        if isinstance(other, Mapping) and isinstance(one, Mapping) and name != "config":
            yield from _differences(one, other, where=f"{where}{name}.")
        elif one != other:
            shown = "" if name == "config" else f" was {_short(one)}, is now {_short(other)}"
            yield f"{where}{name}{shown or ' differs'}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


def _write(path: Path, content: Mapping[str, Any]) -> None:
    try:
        write_text(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); give another folder") from error
