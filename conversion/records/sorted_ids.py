"""Files of sorted ids, made in bounded memory and searched through a memory map."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt64

from clipa_eqx.progress import progress_bar
from conversion.records.ids import Ids, mixed

_IDS_PER_BUCKET = 2**21  # 32 MiB; sorting takes several times this
_MOST_BUCKET_BITS = 8  # 256 open files
_ID_BYTES = 16

Halves = UInt64[np.ndarray, " ids"]
Positions = Int64[np.ndarray, " ids"]


class SortedIds:
    """Different ids in the order of their ``mixed`` bits, each at its position.

    Args:
        high: the upper halves of the mixed ids.
        low: the lower ones.
    """

    def __init__(self, high: Halves, low: Halves) -> None:
        self._high, self._low = high, low

    @classmethod
    def open(cls, path: Path, *, rows: int, count: int) -> "SortedIds":
        """Map a file that ``write_sorted`` wrote.

        Args:
            rows: number of ids that the file has room for.
            count: number of different ids in it.
        """
        numbers = np.memmap(path, "<u8", mode="r", shape=(2 * rows,))
        return cls(numbers[:count], numbers[rows : rows + count])

    def find(self, ids: Ids) -> Positions:
        """The position of each id; -1 for one that the file does not have."""
        wanted = mixed(ids)
        high, low = wanted[:, 0], wanted[:, 1]
        at = np.searchsorted(self._high, high)
        found = np.full(len(ids), -1, np.int64)
        candidates = np.flatnonzero(at < len(self._high))
        while len(candidates):
            candidates = candidates[self._high[at[candidates]] == high[candidates]]
            equal = self._low[at[candidates]] == low[candidates]
            found[candidates[equal]] = at[candidates[equal]]
            # Different ids that share their upper half follow one another.
            candidates = candidates[~equal]
            at[candidates] += 1
            candidates = candidates[at[candidates] < len(self._high)]
        return found

    def some(self, positions: Positions) -> "SortedIds":
        """The ids at these positions, which must be in order, in memory."""
        return SortedIds(self._high[positions], self._low[positions])


def write_sorted(chunks: Iterable[Ids], path: Path, *, rows: int, folder: Path) -> int:
    """Write the different ids in the order of their mixed bits, and return their number.

    The ids go to up to 256 files by their first bits, once for each chunk that has them, and each file is sorted by
    itself. Memory is for one chunk and one file: about 0.2 GB up to half a billion ids, and in proportion beyond. A
    file can be larger only by an id that very many chunks repeat, by 16 bytes for each of them. The folder takes up to
    16 bytes per id, and so does the result.

    Args:
        rows: number of ids in all chunks.
        folder: a folder for temporary files, which is left empty.
    """
    bits = min(max(0, (-(-rows // _IDS_PER_BUCKET) - 1).bit_length()), _MOST_BUCKET_BITS)
    buckets = [folder / f"{number}" for number in range(2**bits)]
    with ExitStack() as stack:
        files = [stack.enter_context(bucket.open("wb", buffering=2**16)) for bucket in buckets]
        for chunk in chunks:
            for number, ids in _by_bucket(np.stack(_different(mixed(chunk)), axis=1), bits):
                files[number].write(ids.tobytes())
    count, written = 0, sum(bucket.stat().st_size for bucket in buckets) // _ID_BYTES
    with path.open("wb") as file, progress_bar(what="sort ids", total=written, unit="id") as bar:
        file.truncate(_ID_BYTES * rows)
        for bucket in buckets:
            ids = np.fromfile(bucket, np.uint64).reshape(-1, 2)
            bucket.unlink()
            bar.update(len(ids))
            high, low = _different(ids)
            file.seek(8 * count)
            file.write(high.astype("<u8").tobytes())
            file.seek(8 * (rows + count))
            file.write(low.astype("<u8").tobytes())
            count += len(high)
    return count


def _by_bucket(ids: Ids, bits: int) -> Iterator[tuple[int, Ids]]:
    """Split ids, which are in order, by their first bits."""
    if not bits:
        yield 0, ids
        return
    first_of = np.arange(2**bits, dtype=np.uint64) << np.uint64(64 - bits)
    starts = np.searchsorted(ids[:, 0], first_of)
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(ids)], strict=True)):
        if end > start:
            yield number, ids[start:end]


def _different(ids: Ids) -> tuple[np.ndarray, np.ndarray]:
    """The halves of the different ids in order."""
    order = np.argsort(ids[:, 0])
    high, low = ids[order, 0], ids[order, 1]
    if bool(((high[1:] == high[:-1]) & (low[1:] < low[:-1])).any()):  # rare: their upper halves are equal
        order = np.lexsort((ids[:, 1], ids[:, 0]))
        high, low = ids[order, 0], ids[order, 1]
    is_new = np.ones(len(high), bool)
    is_new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return high[is_new], low[is_new]
