#!/usr/bin/env bash
# array_record 0.8.6: a record of a gs:// shard is asked for as everything from its first byte to the end of the shard.
#
# Each record of ArrayRecordReader.read is one request with the range "bytes=START-", over a connection of its own that is
# closed once the record is there. A server on this machine shows it: two records of 20 kB from the front and the middle of
# a shard of 2 MB give two connections and two ranges without an end. What is sent until the connection closes is read in
# vain, and each record pays for a new connection. This code reads exact ranges with TensorStore instead.
#
# Needs Python 3.11 or later: PYTHON=/its/path. Installs into a temporary folder from the package registry that pip is set
# up with. Exit 0: behavior as described. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet array_record==0.8.6
cat >"$folder/read.py" <<'PYTHON'
import http.server
import os
import re
import sys
import threading

from array_record.python import array_record_module

folder, = sys.argv[1:]
with open(f"{folder}/shard.array_record", "wb"):
    pass
writer = array_record_module.ArrayRecordWriter(f"{folder}/shard.array_record", "group_size:1,uncompressed")
for _ in range(100):
    writer.write(os.urandom(20_000))
writer.close()
with open(f"{folder}/shard.array_record", "rb") as file:
    content = file.read()
ranges, clients = [], set()


class Bucket(http.server.BaseHTTPRequestHandler):
    """A bucket with this shard."""

    def do_GET(self):
        wanted = self.headers["Range"]
        ranges.append(wanted)
        clients.add(self.client_address)
        first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted).groups()
        start = int(first) if first else len(content) - int(last)
        stop = int(last) + 1 if first and last else len(content)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        try:
            self.wfile.write(content[start:stop])
        except OSError:  # the client has closed the connection
            pass

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
server.handle_error = lambda *_: None
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["CLOUD_STORAGE_EMULATOR_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
reader = array_record_module.ArrayRecordReader("gs://bucket/shard.array_record")
print(reader.num_records(), "records; opened with", ranges)
ranges.clear()
clients.clear()
read = reader.read([10, 50])
print("records of", [len(one) for one in read], "bytes; asked for", ranges, "over", len(clients), "connections")
as_described = len(ranges) == len(clients) == 2 and all(re.fullmatch(r"bytes=\d+-", one) for one in ranges)
sys.stdout.flush()
os._exit(0 if as_described else 1)
PYTHON
"$folder/venv/bin/python" "$folder/read.py" "$folder"
