"""Embeddings on disk as something to search: its rows in blocks, and the item behind each row."""

import bisect
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.errors import ClipaError, ConfigError, DataError
from clipa_eqx.json_files import read_json_object
from clipa_eqx.search.embedding import EMBEDDINGS_FILE, FORMAT
from clipa_eqx.search.exact import Block
from clipa_eqx.search.shards import open_vectors, read_listing

ROWS_PER_BLOCK = 8192
"""Rows that are in memory at once; few enough for the cache of a processor, so that more queries cost little."""


class Found(NamedTuple):
    """The item behind a row.

    Attributes:
        id: as in ``inputs.Item``.
        text: the text; None for an image.
        image: reads the content of the image file, and raises DataError or OSError; None for a text.
    """

    id: str
    text: str | None
    image: Callable[[], bytes] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """The rows of a shard that are searched.

    Attributes:
        vectors: opens all vectors of the shard on disk; few shards are open at once, each needs a file descriptor.
        rows: the rows that are searched, in order; None for all.
        numbers: number of each of them.
    """

    vectors: Callable[[], Float[np.ndarray, "all embed"]]
    rows: Int64[np.ndarray, " rows"] | None
    numbers: Int64[np.ndarray, " rows"]


@dataclass(frozen=True, kw_only=True)
class SearchIndex:
    """Rows to search.

    Attributes:
        kind: images or texts.
        title: the place of the items, for messages.
        model: fingerprint of the model that made the vectors, with its ``path``.
        width: length of the vectors.
        state: a hash that changes with the rows or their order.
        parts: the rows; together they have the numbers below ``len(index)``.
        find: the item behind a number.
    """

    kind: Literal["images", "texts"]
    title: str
    model: Mapping[str, Any]
    width: int
    state: str
    parts: Sequence[Part]
    find: Callable[[int], Found]

    def __len__(self) -> int:
        return sum(len(part.numbers) for part in self.parts)

    def blocks(self, *, rows: int = ROWS_PER_BLOCK) -> Iterator[Block]:
        """Yield all rows, at most ``rows`` at once."""
        for part in self.parts:
            vectors = part.vectors()
            for start in range(0, len(part.numbers), rows):
                some = slice(start, start + rows)
                taken = some if part.rows is None else part.rows[some]
                yield Block(part.numbers[some], np.asarray(vectors[taken]))

    def rows(self, numbers: Int64[np.ndarray, " rows"]) -> Float[np.ndarray, "rows embed"]:
        """The vectors with these numbers, in that order. Raises IndexError if there is no such number."""
        found = np.zeros((len(numbers), self.width), np.float32)
        missing = np.ones(len(numbers), bool)
        for part in self.parts:
            order = np.argsort(part.numbers)
            at = np.searchsorted(part.numbers, numbers, sorter=order).clip(max=len(order) - 1)
            here = part.numbers[order[at]] == numbers if len(order) else np.zeros(len(numbers), bool)
            places = order[at[here]]
            if len(places):
                found[here] = part.vectors()[places if part.rows is None else part.rows[places]]
            missing &= ~here
        if missing.any():
            raise IndexError(f"the index has no row {numbers[missing][0]}")
        return found


def open_embeddings(folder: Path | str) -> SearchIndex:
    """Open a complete folder of embeddings; vectors are read when they are searched.

    Examples:
        ```python
        index = open_embeddings("embeddings")
        found = best_rows(index.blocks(), clip.encode_texts(["a cat"]), k=5)
        names = [index.find(int(number)).id for number in found.numbers[0]]
        ```

    Raises:
        ConfigError: the folder has no embeddings, or is not complete.
        DataError: a file is missing or damaged.
    """
    folder = Path(folder)
    hint = "give a folder that clipa-embed wrote, or a folder of photos"
    content = read_json_object(folder / EMBEDDINGS_FILE, error=ConfigError, hint=hint)
    if content.get("format") != FORMAT:
        raise ConfigError(f"{folder} has the format {content.get('format')!r}, expected {FORMAT!r}; {hint}")
    if not content.get("complete"):
        raise ConfigError(f"{folder} is not complete; run the command that writes it again, which resumes")
    counts = [int(shard["rows"]) for shard in content["shards"]]
    ends = list(itertools.accumulate(counts))
    parts: list[Part] = []
    for shard, (count, end) in enumerate(zip(counts, ends, strict=True)):
        vectors = partial(open_vectors, folder, shard, rows=count)
        vectors()  # a missing or damaged file is an error now
        parts.append(Part(vectors=vectors, rows=None, numbers=np.arange(end - count, end)))
    open_image = _image_opener(content["inputs"]) if content["kind"] == "images" else None

    def find(number: int) -> Found:
        shard = bisect.bisect_right(ends, number)
        listing = read_listing(folder, shard)
        row = number - (ends[shard] - counts[shard])
        name, source = listing.ids[row], listing.numbers[row]
        text = None if listing.texts is None else listing.texts[row]
        return Found(name, text, None if open_image is None else partial(open_image, source, name))

    return SearchIndex(
        kind=content["kind"],
        title=str(content["inputs"]["path"]),
        model=content["model"],
        width=int(content["width"]),
        state=state_of(str(shard["sha256"]) for shard in content["shards"]),
        parts=parts,
        find=find,
    )


def state_of(parts: Iterable[str]) -> str:
    """One hash over descriptions of all rows."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _image_opener(about: Mapping[str, Any]) -> Callable[[int, str], bytes]:
    """A function that reads an image again, from its number and id."""
    if about["source"] == "image folder":
        root = Path(about["path"])
        return lambda number, name: (root / name).read_bytes()

    opened = cache(open_records)  # at the first image: opening many shards takes a while

    def of_record(number: int, name: str) -> bytes:
        record = opened(about["path"])[number]
        if record.key != name:
            raise DataError(f"record {number} of {about['path']} is {record.key!r} now, and was {name!r}")
        return record.image

    def guarded(number: int, name: str) -> bytes:
        try:
            return of_record(number, name)
        except (ClipaError, IndexError) as error:
            raise DataError(str(error)) from error

    return guarded
