"""Lines for the terminal: numbers agree with their nouns."""

import pytest

from clipa_eqx.data.manifest import Manifest
from clipa_eqx.data.shards import ShardInfo
from conversion.records.printing import account_lines, damage_lines


def manifest(*counts):
    shards = tuple(
        ShardInfo(name=f"shard-{i:05d}.array_record", count=count, bytes=10**6, sha256="0" * 64)
        for i, count in enumerate(counts)
    )
    return Manifest(
        shards=shards,
        rows_read=sum(counts),
        rows_written=sum(counts),
        rows_dropped={},
        info={"captions_dropped": {}, "damaged_sources": []},
    )


@pytest.mark.parametrize(
    ("counts", "damaged", "lines"),
    [
        ((1,), 0, ("x: 1 record in 1 shard, 1.0 MB", "x: 1 of 1 shard is as written, 1 record")),
        ((1,), 1, ("x: 1 record in 1 shard, 1.0 MB", "x: 0 of 1 shard is as written, 1 record")),
        ((1000, 500), 0, ("x: 1,500 records in 2 shards, 2.0 MB", "x: 2 of 2 shards are as written, 1,500 records")),
        ((1000, 500), 1, ("x: 1,500 records in 2 shards, 2.0 MB", "x: 1 of 2 shards is as written, 1,500 records")),
    ],
)
def test_numbers_agree_with_their_nouns(counts, damaged, lines):
    found = manifest(*counts)
    assert next(account_lines("x", found)) == lines[0]
    assert list(damage_lines("x", found, ["a shard"] * damaged))[-1] == lines[1]
