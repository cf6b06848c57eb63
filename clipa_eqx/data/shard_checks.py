"""Comparison of shard files with their manifest before they are read: existence and size."""

import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from clipa_eqx.data.addresses import ShardAddresses, is_url
from clipa_eqx.data.shards import ShardTable
from clipa_eqx.errors import DataError
from clipa_eqx.progress import progress_bar

MOST_SIZES = 2**14
"""Shards whose sizes are compared when a record folder is opened; of more, these are spread evenly."""

_AT_ONCE = 256  # sizes that a thread compares in one go
_THREADS = 16  # a size takes a round trip on a network file system


def check_shards(addresses: ShardAddresses, shards: ShardTable) -> None:
    """Check the local shards of a record folder: sizes of up to ``MOST_SIZES``, names of all.

    With more shards, their folders are listed for the names, because asking for every size in every process of a run
    would load a network file system. The size of each shard is compared again when it is first read.

    Raises:
        DataError: a shard is missing, or has another size than in the manifest; the message names the first one.
    """
    local = [not is_url(folder) for folder in addresses.folders]
    numbers = [
        number
        for (start, end), is_local in zip(pairwise((*shards.firsts, len(shards))), local, strict=True)
        if is_local
        for number in range(start, end)
    ]
    if len(numbers) > MOST_SIZES:
        _check_names(addresses, shards, local)
        numbers = [numbers[i] for i in np.linspace(0, len(numbers) - 1, MOST_SIZES).astype(np.int64).tolist()]

    def check(some: Sequence[int]) -> int:
        for number in some:
            check_size(addresses[number], expected=int(shards.sizes[number]))
        return len(some)

    if len(numbers) <= _AT_ONCE:
        check(numbers)
        return
    blocks = [numbers[start : start + _AT_ONCE] for start in range(0, len(numbers), _AT_ONCE)]
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        progress_bar(what="compare sizes of shards", total=len(numbers), unit="shard") as bar,
    ):
        for checked in pool.map(check, blocks):
            bar.update(checked)


def check_size(path: str, *, expected: int) -> None:
    """Raise DataError unless the local shard exists and has ``expected`` bytes."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None
    except OSError as error:
        raise DataError(f"shard {path} cannot be read: {error.strerror}; make it readable for this user") from error
    if not stat.S_ISREG(found.st_mode):
        raise _missing(path)
    if found.st_size != expected:
        raise DataError(
            f"shard {path} has {found.st_size} bytes, its manifest says {expected}: it is truncated or changed; "
            "restore it"
        )


def _check_names(addresses: ShardAddresses, shards: ShardTable, local: Sequence[bool]) -> None:
    bounds = (*shards.firsts, len(shards))
    with progress_bar(what="list shards", total=len(local), unit="folder") as bar:
        for folder, is_local in enumerate(local):
            if is_local:
                try:
                    names = set(os.listdir(addresses.folders[folder]))
                except OSError:
                    names = set[str]()
                for number in range(bounds[folder], bounds[folder + 1]):
                    if shards.names[number] not in names:
                        raise _missing(addresses[number])
            bar.update()


def _missing(path: str) -> DataError:
    return DataError(f"shard {path} is missing; restore it or convert the data again")
