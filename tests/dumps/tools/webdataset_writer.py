# /// script
# dependencies = ["webdataset==1.0.2", "numpy==2.4.6", "pillow==13.0.0"]
# ///
"""Tars as webdataset's ``ShardWriter`` and ``TarWriter`` write them, and its own decoding of each sample."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

IMAGES, OUT = Path(sys.argv[1]), Path(sys.argv[3])
LIST = json.loads((IMAGES / "list.json").read_text(encoding="utf-8"))
SUFFIXES = {".jpg": "jpg", ".png": "png", ".webp": "webp"}


def image_of(row):
    return (IMAGES / row["file"]).read_bytes()


def suffix_of(row):
    return SUFFIXES[Path(row["file"]).suffix]


def fields_of(row):
    return {"caption": row["captions"][-1], "file": row["file"], "all": row["captions"]}


def shards(row, number):
    """Everything that a sample may have, under keys with folders."""
    return {
        "__key__": f"photos/{number // 4}/{number:05d}",
        suffix_of(row): image_of(row),
        "txt": row["captions"][0],
        "cls": row["label"],
        "json": fields_of(row),
        "npy": np.full((4,), number / 8, np.float32),
    }


def labeled(row, number):
    return {"__key__": f"{number:05d}", suffix_of(row).upper(): image_of(row), "cls": row["label"]}


def compressed(row, number):
    return {
        "__key__": f"{number:05d}",
        suffix_of(row): image_of(row),
        "txt.gz": row["captions"][0],
        "json.gz": fields_of(row),
        "cls.gz": row["label"],
    }


def two_images(row, number):
    return {
        "__key__": f"{number:05d}",
        "left.jpg": image_of(row),
        "right.jpg": image_of(LIST[number - 1]),
        "caption.txt": row["captions"][0],
        "class.cls": row["label"],
    }


def encoded(row, number):
    """Pixels and values that webdataset encodes."""
    with Image.open(IMAGES / row["file"]) as image:
        return {"__key__": f"{number:05d}", "png": image.convert("RGB"), "text": row["captions"][0]}


def with_meta(row, number):
    return {"__key__": f"ä {number:05d}", suffix_of(row): image_of(row), "txt": row["captions"][0], "__note__": "x"}


def multilabel(row, number):
    vector = np.array([(number + i) % 3 == 0 for i in range(5)], np.uint8)
    return {"__key__": f"{number:05d}", suffix_of(row): image_of(row), "npy": vector}


def several_lines(row, number):
    return {"__key__": f"{number:05d}", suffix_of(row): image_of(row), "txt": "\n".join(row["captions"])}


def dotted(row, number):
    return {"__key__": f"photo.{number:05d}", suffix_of(row): image_of(row), "txt": row["captions"][0]}


def bitmap(row, number):
    with Image.open(IMAGES / row["file"]) as image:
        return {"__key__": f"{number:05d}", "ppm": image.convert("RGB"), "txt": row["captions"][0]}


def write(form, make, *, rows=LIST[:6], name="%05d.tar", first=0, **options):
    (OUT / form).mkdir(exist_ok=True)
    with webdataset.ShardWriter(
        str(OUT / form / name), maxcount=4, start_shard=first, verbose=0, mtime=0, **options
    ) as writer:
        for number, row in enumerate(rows):
            writer.write(make(row, number))


def read(form):
    """The samples as webdataset decodes them; images stay bytes, vectors become lists."""
    urls = sorted(str(path) for path in (OUT / form).iterdir())
    samples = []
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
        values = {"__shard__": Path(sample["__url__"]).name}
        for name, value in sample.items():
            if isinstance(value, bytes):
                values[name] = f"sha256:{hashlib.sha256(value).hexdigest()}"
            elif name != "__url__" and name != "__local_path__":
                values[name] = value.tolist() if isinstance(value, np.ndarray) else value
        samples.append(values)
    return samples


def main():
    write("shards", shards, name="photos-%06d.tar")
    write("labeled", labeled, rows=LIST[:4])
    write("compressed", compressed, rows=LIST[:4], name="%05d.tar.gz")
    write("two_images", two_images, rows=LIST[:4])
    write("encoded", encoded, rows=LIST[:4])
    write("with_meta", with_meta, rows=LIST[:4], keep_meta=True, format="PAX_FORMAT")
    write("multilabel", multilabel, rows=LIST[:4])
    write("several_lines", several_lines, rows=LIST[:4])
    write("same_keys", labeled, rows=LIST[:3])
    write("same_keys", labeled, rows=LIST[4:7], first=1)
    write("dotted", dotted, rows=LIST[:3])
    write("bitmap", bitmap, rows=LIST[:1])
    write("other_compression", labeled, rows=LIST[:3], name="%05d.tar.bz2")
    found = {path.name: read(path.name) for path in sorted(OUT.iterdir()) if path.name not in ("dotted",)}
    (OUT / "read.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
