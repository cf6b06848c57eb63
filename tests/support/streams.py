"""Small record folders and comparisons of batches for the tests of streams."""

import numpy as np

from clipa_eqx.data.array_record_reader import RecordSource, open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.records import Record

# Each batch is made when it is asked for, without threads and processes.
ON_DEMAND = StreamConfig(workers=0, threads=0, prefetch_batches=0)


def write_numbered(folder, count, *, first=0, make_image=lambda index: b"", records_per_shard=60) -> RecordSource:
    """Write records whose keys are the numbers from ``first`` on, and open them."""
    records = (Record(key=str(n), image=make_image(n)) for n in range(first, first + count))
    write_records(records, folder, records_per_shard=records_per_shard)
    return open_records(folder)


def share(batch_size, process, processes):
    """The rows of one of several processes that share a batch evenly."""
    local = batch_size // processes
    return range(process * local, (process + 1) * local)


def concatenate(parts):
    """Global batches of lists of the processes' batches."""
    return [{name: np.concatenate([b[name] for b in same]) for name in same[0]} for same in zip(*parts, strict=True)]


def assert_same_batches(found, expected):
    """Check that two lists of batches have equal names, types and values."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
