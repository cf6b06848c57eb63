"""Record folders in a bucket: array_record reads shards from a local stand-in, fsspec reads the manifest."""

import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from support.paths import ROOT

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.records import Record
from clipa_eqx.errors import DataError

# The address of the stand-in is read once per process, so the test reads in a new process. A driver for gs:// replaces
# gcsfs for the manifest.
PROGRAM = """
import sys
from pathlib import Path

import fsspec
from fsspec.implementations.dirfs import DirFileSystem


class Bucket(DirFileSystem):
    protocol = "gs"

    def __init__(self, **options):
        super().__init__(path=sys.argv[1], fs=fsspec.filesystem("file"))


if __name__ == "__main__":
    fsspec.register_implementation("gs", Bucket, clobber=True)
    import numpy as np
    from clipa_eqx.data.array_record_reader import open_records
    from clipa_eqx.data.prefetch import StreamConfig
    from clipa_eqx.data.stream import train_stream

    source = open_records("gs://bucket/set/")
    print(len(source), *(source[i].key for i in (0, 5, 9)), source.describe(5), sep="|")
    with train_stream(source, lambda record, rng: {"key": int(record.key)}, batch_size=4, seed=0) as stream:
        print(*next(stream)["sample_id"])
"""


@pytest.fixture
def bucket(tmp_path):
    """A folder that is served like media in Google's storage; returns it with its address."""
    root = tmp_path / "buckets"
    write_records((Record(key=str(i), image=b"x" * 100) for i in range(10)), root / "bucket/set", records_per_shard=4)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            # .../bucket/set/shard or .../b/bucket/o/set%2Fshard
            name = re.sub(r".*/b/([^/]+)/o/", r"\1/", urlsplit(self.path).path).lstrip("/")
            content = (root / unquote(name)).read_bytes()
            first, last, status = 0, len(content) - 1, 200
            if found := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or ""):
                status = 206
                if not found[1]:
                    first = max(0, len(content) - int(found[2]))
                else:
                    first, last = int(found[1]), min(last, int(found[2] or last))
            part = content[first : last + 1]
            self.send_response(status)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield root, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_bucket_is_read_like_a_folder(bucket, tmp_path):
    root, address = bucket
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), str(root)],
        env=os.environ | {"CLOUD_STORAGE_EMULATOR_ENDPOINT": address, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    records, batch = done.stdout.splitlines()
    assert records == "10|0|5|9|gs://bucket/set/shard-00001.array_record, record 1"
    assert len(batch.split()) == 4


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("s3://bucket/set", r"local paths and gs:// only; copy it, or mount the bucket"),
        (Path("gs://bucket/set"), "URL with one slash"),
        pytest.param("gs://bucket/set", r"gs://bucket/set/manifest\.json cannot be read", marks=pytest.mark.slow),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused_with_advice(folder, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed, so that nothing accesses the network
    with pytest.raises(DataError, match=message):
        open_records(folder)
