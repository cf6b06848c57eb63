"""Shards in a bucket that another program wrote: in chunks of several records, which array_record itself reads."""

import contextlib
import importlib
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from support.paths import ROOT

from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.manifest import read_manifest
from clipa_eqx.data.records import Record

# array_record reads the address of a stand-in once per process, so the test reads in a new process.
PROGRAM = """
from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.manifest import read_manifest
import sys

source = RecordSource(folder="gs://bucket/set", manifest=read_manifest(sys.argv[1]))
print(*(record.key for record in source.read([0, 9, 5])))
"""


@contextlib.contextmanager
def media_server(root):
    """Serve the files of a folder like media in Google's storage; the other server has no ranges from the end."""

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
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_shards_of_another_layout_are_read_by_array_record(tmp_path):
    folder = tmp_path / "buckets/bucket/set"
    write_records((Record(key=str(i), image=b"x" * 100) for i in range(10)), folder)
    (shard,) = read_manifest(folder).shards
    blobs = importlib.import_module("array_record.python.array_record_module")
    reader = blobs.ArrayRecordReader(str(folder / shard.name), options="")
    records = reader.read(list(range(10)))
    reader.close()
    writer = blobs.ArrayRecordWriter(str(folder / shard.name), "group_size:4")
    for record in records:
        writer.write(record)
    writer.close()
    with media_server(tmp_path / "buckets") as address:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(folder)],
            env=os.environ
            | {"CLOUD_STORAGE_EMULATOR_ENDPOINT": address, "STORAGE_EMULATOR_HOST": address, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "9", "5"]
