"""The index of a folder of photos: new and changed files are embedded, deleted ones dropped."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.json_files import has_format, read_json_object
from clipa_eqx.progress import progress_bar
from clipa_eqx.replacing import write_text
from clipa_eqx.search.embedding import remove_shard
from clipa_eqx.search.encoder import Chunk, Encoder, check_same_model, encode_items
from clipa_eqx.search.index import Found, Part, SearchIndex, state_of
from clipa_eqx.search.inputs import ImageFile, Item, list_images
from clipa_eqx.search.shards import Listing, clean_shard, open_vectors, read_listing, vectors_path, write_shard

PHOTOS_FILE = "photos.json"
"""File of an index that names the folder of photos and the model."""

FORMAT = "clipa_eqx photo index 1"

_ANY_FORMAT = "clipa_eqx photo index "

SHARD_FILES = 512
"""Files per shard; the work that a kill loses."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PhotoIndex:
    """The description of an index of photos.

    Attributes:
        folder: the folder of photos.
        model: fingerprint of the model that made the vectors, with its ``path``.
    """

    folder: Path
    model: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The differences between an index and its folder.

    Attributes:
        files: all image files, by path.
        places: shard and row of each file that has a vector.
        unreadable: the reason of each file that was found unreadable.
        new: files that are not in the index, or were changed since.
        rows: rows of the index, ``dropped`` of which are of files that are gone or were changed.
        shards: numbers of the shards that can be read, in order.
        damaged: numbers of shards whose vectors are damaged or missing; the listing of each can be read.
        next_shard: a number above those of all shards on disk.
        width: length of the vectors; 0 without shards.
    """

    files: Sequence[ImageFile]
    places: Mapping[str, tuple[int, int]]
    unreadable: Mapping[str, str]
    new: Sequence[ImageFile]
    rows: int
    dropped: int
    shards: Sequence[int]
    damaged: Sequence[int]
    next_shard: int
    width: int


def is_photo_index(folder: Path) -> bool:
    """Whether a folder has the description of an index, of any version. A folder of photos may have a file so named."""
    return has_format(folder / PHOTOS_FILE, _ANY_FORMAT)


def check_place(index: Path, folder: Path) -> None:
    """Check that an index may be written to a folder: a new or empty one, or an index.

    Names that start with a dot are not counted.

    Raises:
        ConfigError: the folder has other contents, or is the folder of photos or one around it.
    """
    if folder.resolve().is_relative_to(index.resolve()):
        raise ConfigError(f"the index {index} would hold the photos of {folder}; name another --index")
    if is_photo_index(index) or not index.is_dir():
        return
    others = sorted(one.name for one in index.iterdir() if one.name[0] != ".")
    if others:
        raise ConfigError(
            f"{index} is not empty and is not an index of photos ({', '.join(others[:3])}): its {PHOTOS_FILE} is "
            "missing, damaged or of another program; name a new folder with --index, or delete this one if this "
            "program made it"
        )


def read_photo_index(index: Path) -> PhotoIndex | None:
    """The description of an index; None if the folder has none.

    Raises:
        ConfigError: it is of another version.
    """
    path = index / PHOTOS_FILE
    if not is_photo_index(index):
        return None
    hint = f"delete {index}, the folder of the index, and the photos are embedded again"
    found = read_json_object(path, error=ConfigError, hint=hint)
    if found.get("format") != FORMAT or not isinstance(found.get("model"), dict):
        raise ConfigError(f"{path} has the format {found.get('format')!r}, expected {FORMAT!r}; {hint}")
    return PhotoIndex(folder=Path(str(found.get("folder"))), model=found["model"])


def changes_of(index: Path, folder: Path) -> Changes:
    """Compare an index with its folder, by path, size and time of the last change. Damaged shards count as absent.

    Raises:
        DataError: the folder cannot be read.
    """
    files = list_images(folder, outside=index)
    wanted = {file.name: file for file in files}
    places: dict[str, tuple[int, int]] = {}
    unreadable: dict[str, str] = {}
    rows = width = 0
    shards: list[int] = []
    damaged: list[int] = []
    on_disk = _shards(index)
    for shard in on_disk:
        is_own = False
        try:
            listing = read_listing(index, shard)
            known = [_file_of(one) for one in listing.ids]
            bad = [(_file_of(one.id), one.reason) for one in listing.unreadable]
            is_own = True
            width = open_vectors(index, shard, rows=len(known)).shape[1]
        except (DataError, ValueError) as error:
            _log.warning("a shard of the index is damaged, and its photos are embedded again: %s", error)
            damaged += [shard] if is_own else []
            continue
        shards.append(shard)
        rows += len(known)
        places |= {file.name: (shard, row) for row, file in enumerate(known) if wanted.get(file.name) == file}
        unreadable |= {file.name: reason for file, reason in bad if wanted.get(file.name) == file}
    return Changes(
        files=files,
        places=places,
        unreadable={name: reason for name, reason in unreadable.items() if name not in places},
        new=[file for file in files if file.name not in places and file.name not in unreadable],
        rows=rows,
        dropped=rows - len(places),
        shards=shards,
        damaged=damaged,
        next_shard=max(on_disk, default=-1) + 1,
        width=width,
    )


def update(index: Path, folder: Path, encoder: Encoder, changes: Changes, *, batch_size: int) -> None:
    """Embed the new files, then delete damaged shards. The caller holds the lock of the folder ``index``.

    A kill loses at most one shard of work. Rows of files that are gone stay on disk until they are more than half.

    Args:
        changes: of the same folders.

    Raises:
        ConfigError: the index is of another folder or model, or cannot be written.
        DataError: the index cannot be written.
    """
    begun = read_photo_index(index)
    if begun is None:
        model = encoder.fingerprint | {"path": encoder.path}
        try:
            content = {"format": FORMAT, "folder": str(folder.resolve()), "model": model}
            write_text(index / PHOTOS_FILE, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise ConfigError(f"{index} cannot be written ({error.strerror}); name another --index") from error
    else:
        check_same_model(
            begun.model, encoder, where=f"the index {index}", hint="name another --index for this model", adds=True
        )
    first = changes.next_shard
    clean_shard(index, first)
    with progress_bar(what="embedding photos", total=len(changes.new), unit="image") as bar:
        for shard, start in enumerate(range(0, len(changes.new), SHARD_FILES), first):
            some = changes.new[start : start + SHARD_FILES]
            chunks = encode_items(encoder, _items(folder, some), batch_size=batch_size, is_images=True)
            for one in _write(index, shard, _counted(chunks, bar.update), width=encoder.width).unreadable:
                _log.warning("left out: %s: %s", _file_of(one.id).name, one.reason)
    for shard in changes.damaged:
        remove_shard(index, shard)


def shrink(index: Path, folder: Path) -> None:
    """Write the index again without the rows of files that are gone, if they are more than half of it.

    The caller holds the lock. The new shards are complete before the former ones are deleted.
    """
    changes = changes_of(index, folder)
    if 2 * changes.dropped <= changes.rows:
        return
    kept = [file for file in changes.files if file.name in changes.places]
    bad = [file for file in changes.files if file.name in changes.unreadable]
    unreadable = [
        item._replace(content=DataError(changes.unreadable[file.name]))
        for file, item in zip(bad, _items(folder, bad), strict=True)
    ]
    # A shard without rows still holds the reasons of unreadable files.
    starts = range(0, len(kept), SHARD_FILES) or range(1 if unreadable else 0)
    for shard, start in enumerate(starts, changes.next_shard):
        some = kept[start : start + SHARD_FILES]
        rows = [_vector(index, *changes.places[file.name]) for file in some]
        chunk = Chunk(
            items=list(_items(folder, some)),
            vectors=np.array(rows, np.float32).reshape(len(rows), changes.width),
            unreadable=unreadable if start == 0 else (),
            truncated=0,
        )
        _write(index, shard, [chunk], width=changes.width)
    for shard in changes.shards:
        remove_shard(index, shard)


def open_photos(index: Path, folder: Path) -> SearchIndex:
    """The photos of an index that are still in the folder unchanged, by path.

    Raises:
        ConfigError: there is no index.
        DataError: the folder cannot be read.
    """
    begun = read_photo_index(index)
    if begun is None:
        raise ConfigError(f"{index} has no index of photos; name the folder of photos to make one")
    changes = changes_of(index, folder)
    names = [file.name for file in changes.files if file.name in changes.places]
    by_shard: dict[int, list[tuple[int, int]]] = {}
    for number, name in enumerate(names):
        shard, row = changes.places[name]
        by_shard.setdefault(shard, []).append((row, number))
    parts: list[Part] = []
    described: list[str] = []
    width = 0
    for shard, pairs in sorted(by_shard.items()):
        listing = read_listing(index, shard)
        vectors = partial(open_vectors, index, shard, rows=len(listing.ids))
        described.append(f"{listing.vectors_sha256} {pairs}")
        rows = np.array(pairs, np.int64)
        width = vectors().shape[1]
        parts.append(Part(vectors=vectors, rows=rows[:, 0], numbers=rows[:, 1]))

    def find(number: int) -> Found:
        return Found(names[number], None, (folder / names[number]).read_bytes)

    return SearchIndex(
        kind="images",
        title=str(folder),
        model=begun.model,
        width=width,
        state=state_of(described),
        parts=parts,
        find=find,
    )


def _shards(index: Path) -> list[int]:
    stems = [path.stem for path in index.glob("*.json")]
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit() and stem == f"{int(stem):05}")


def _items(folder: Path, files: Iterable[ImageFile]) -> Iterator[Item]:
    """Items whose ids hold size and time, which decide later whether a file was changed."""
    for number, file in enumerate(files):
        yield Item(number, f"{file.size}/{file.changed}/{file.name}", folder / file.name)


def _file_of(identity: str) -> ImageFile:
    size, changed, name = identity.split("/", 2)
    return ImageFile(name, int(size), int(changed))


def _counted(chunks: Iterable[Chunk], seen: Callable[[int], object]) -> Iterator[Chunk]:
    for chunk in chunks:
        yield chunk
        seen(len(chunk.items) + len(chunk.unreadable))


def _write(index: Path, shard: int, chunks: Iterable[Chunk], *, width: int) -> Listing:
    return write_shard(index, shard, chunks, width=width, dtype="float32", is_images=True)


def _vector(index: Path, shard: int, row: int) -> np.ndarray:
    return np.array(np.load(vectors_path(index, shard), mmap_mode="r", allow_pickle=False)[row])
