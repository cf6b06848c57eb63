"""A few records of a folder, read before long work starts: enough to find a folder that is of no use for it."""

import numpy as np

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.records import Record
from clipa_eqx.errors import DataError, counted

_MOST = 16


def first_records(source: RecordSource) -> list[Record | DataError]:
    """The first record of each shard, of at most 16 shards that are evenly spread; damaged ones as their errors.

    Raises:
        DataError: a shard is missing or damaged as a whole.
    """
    counts = source.manifest.table.counts
    starts: list[int] = (np.cumsum(counts) - counts)[counts > 0].tolist()
    every = -(-len(starts) // _MOST) or 1
    return source.read_each(starts[::every])


def check_captions(source: RecordSource) -> None:
    """Check that a folder has captions: by the manifest if it counts them, else by ``first_records``.

    Records without a caption among others pass: whether they end a run is decided when they are read.

    Raises:
        DataError: there are none.
    """
    if not len(source):
        return  # an empty folder has an error of its own
    if "captions_written" in source.manifest.info:
        if source.manifest.info["captions_written"] != 0:
            return
        seen = f"its manifest counts none in {counted(len(source), 'record')}"
    else:
        records = [record for record in first_records(source) if isinstance(record, Record)]
        if not records or any(record.captions for record in records):
            return
        seen = f"of {counted(len(records), 'record')} that were read, such as {records[0].key!r}, none has one"
    labels = "; it has class names: score models on it with zero_shot" if source.manifest.class_names else ""
    raise DataError(
        f"data folder {source.folder} has no captions ({seen}), so nothing can be trained on it{labels}. Convert the "
        "data with their captions, or name another folder"
    )
