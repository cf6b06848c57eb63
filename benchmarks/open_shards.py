"""Records per second of shuffled reads with all shards open, and with most shards reopened, in one run."""

import argparse
import dataclasses
import os
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np

from clipa_eqx.data import open_shards
from clipa_eqx.data.array_record_reader import RecordSource, open_records
from clipa_eqx.data.array_record_writer import write_encoded_shard
from clipa_eqx.data.manifest import Manifest, write_manifest
from clipa_eqx.data.records import Record, encode_record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shards", type=int, default=400)
    parser.add_argument("--records", type=int, nargs="+", default=[1_000, 10_000], help="records per shard, a set each")
    parser.add_argument("--bytes", type=int, default=2_000, help="size of each record")
    parser.add_argument("--open", type=int, default=33, help="shards that stay open in the slow case")
    parser.add_argument("--batch", type=int, default=64, help="records per read")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each measurement")
    options = parser.parse_args()
    for records in options.records:
        with tempfile.TemporaryDirectory() as folder:
            write_set(Path(folder), options, records=records)
            for kept in (options.shards, options.open):
                with mock.patch.object(open_shards, "MOST_OPEN_RECORDS", kept * records):
                    source = open_records(folder)
                    for shard in range(options.shards):
                        source[shard * records]
                    rate = measure(source, options)
                    source.close()
                print(f"{records} records per shard, {kept} open: {rate:,.0f} records/s, {1e3 / rate:.3f} ms each")


def measure(source: RecordSource, options: argparse.Namespace) -> float:
    """Records per second of random reads."""
    rng = np.random.default_rng(0)
    since, count = time.perf_counter(), 0
    while time.perf_counter() - since < options.seconds:
        source.read(rng.integers(len(source), size=options.batch).tolist())
        count += options.batch
    return count / (time.perf_counter() - since)


def write_set(folder: Path, options: argparse.Namespace, *, records: int) -> None:
    """Write one shard and links to it, which are opened and cached like separate files."""
    blobs = [encode_record(Record(key=str(i), image=os.urandom(options.bytes), captions=("x",))) for i in range(64)]
    first = write_encoded_shard(folder / "shard-00000.array_record", (blobs[i % 64] for i in range(records)))
    shards = [dataclasses.replace(first, name=f"shard-{i:05d}.array_record") for i in range(options.shards)]
    for shard in shards[1:]:
        os.link(folder / first.name, folder / shard.name)
    rows = records * options.shards
    write_manifest(folder, Manifest(shards=tuple(shards), rows_read=rows, rows_written=rows, rows_dropped={}))


if __name__ == "__main__":
    main()
