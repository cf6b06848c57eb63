"""Recipe of the dumps in this folder: img2dataset itself downloads from a server on this machine.

In an environment of its own (Python 3.11):

    pip install img2dataset==1.47.0 tensorflow-cpu==2.21.0
    pip install --no-deps tensorflow-io==0.37.1  # only imported; its plugins do not load and are not used
    python tests/records/img2dataset_dumps/make.py

It replaces the folders ``webdataset``, ``tfrecord``, ``parquet`` and ``files``, and ``rows.json``, which says what the
server gave for each row of the list.
"""

import hashlib
import http.server
import json
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from img2dataset import download

FORMS = ("webdataset", "tfrecord", "parquet", "files")
HERE = Path(__file__).parent
PATIENCE = 2  # seconds

CAPTIONS = (
    "a red square",
    "naïve café, 東京 🗼",
    "  spaces at both ends  ",
    'quotes " and, commas',
    "two\nlines",
    None,
    "",
    "NA",
    "one more",
    "12345",
    "x" * 300,
    "the last image",
)
# Rows without an image, by what the server does.
FAILURES = ("missing", "text", "silent", "forbidden", "cut")
ROWS_PER_SHARD = 5  # four shards; the last one holds only failures


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the images, and fails in the ways of ``FAILURES``."""

    images: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        name = self.path.strip("/")
        if name == "silent":
            time.sleep(PATIENCE + 1)
            return
        content = b"<html>Not an image</html>" if name == "text" else self.images.get(name)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        if name == "forbidden":
            self.send_header("X-Robots-Tag", "noai")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def make_images() -> dict[str, bytes]:
    """Images of several formats and sizes, by name."""
    images: dict[str, bytes] = {}
    for i in range(len(CAPTIONS)):
        rng = np.random.default_rng(i)
        channels = 4 if i == 4 else 3
        pixels = cv2.resize(
            rng.integers(0, 256, (3, 4, channels), np.uint8), (40 + i, 30), interpolation=cv2.INTER_CUBIC
        )
        pixels = pixels[..., 0] if i == 7 else pixels
        suffix = (".jpg", ".png", ".webp")[0 if i == 7 else 1 if i == 4 else i % 3]
        done, content = cv2.imencode(suffix, pixels)
        assert done
        images[f"{i}{suffix}"] = content.tobytes()
    return images


def make_rows(images: dict[str, bytes], address: str) -> list[dict[str, object]]:
    """Rows of the list, with failures between the images and alone at the end."""
    good = [{"name": name, "caption": caption, "failure": None} for name, caption in zip(images, CAPTIONS, strict=True)]
    bad = [{"name": name, "caption": f"never seen: {name}", "failure": name} for name in FAILURES]
    rows = [*good[:3], bad[0], *good[3:6], bad[1], *good[6:9], bad[2], *good[9:], *bad[3:], bad[0]]
    return [
        {
            **row,
            "url": f"{address}/{row['name']}",
            "uid": hashlib.md5(str(i).encode()).hexdigest(),
            "similarity": None if i == 2 else 0.25 + i / 100,
        }
        for i, row in enumerate(rows)
    ]


def main() -> None:
    images = make_images()
    Handler.images = {
        **images,
        "forbidden": images["0.jpg"],
        "cut": images["0.jpg"][:100],
    }
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 8765), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    rows = make_rows(images, "http://127.0.0.1:8765")
    with tempfile.TemporaryDirectory() as folder:
        names = ("url", "caption", "uid", "similarity")
        table = pa.table({name: [row[name] for row in rows] for name in names})
        pq.write_table(table, Path(folder) / "list.parquet")
        for form in FORMS:
            shutil.rmtree(HERE / form, ignore_errors=True)
            download(
                url_list=f"{folder}/list.parquet",
                input_format="parquet",
                output_folder=str(HERE / form),
                output_format=form,
                caption_col="caption",
                save_additional_columns=["uid", "similarity"],
                image_size=32,
                resize_mode="keep_ratio",
                resize_only_if_bigger=True,
                number_sample_per_shard=ROWS_PER_SHARD,
                processes_count=1,
                thread_count=4,
                timeout=PATIENCE,
            )
    described = [{name: row[name] for name in ("uid", "caption", "failure")} for row in rows]
    (HERE / "rows.json").write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
