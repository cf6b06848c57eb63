"""Tiny dumps in every form that conversion reads, written by the libraries that users write them with."""

import csv
import io
import json
import os
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from support import goldens

ODD_IMAGES = ("cmyk.jpg", "gray16.png", "rgba.png", "odd_422_progressive.jpg", "exif_rotated.jpg", "still.gif")


def jpeg(number: int, *, width: int = 24, height: int = 16) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return file.getvalue()


def odd_images() -> dict[str, bytes]:
    return {name: (goldens.root() / "preprocess/images" / name).read_bytes() for name in ODD_IMAGES}


@dataclass(frozen=True)
class Sample:
    key: str
    image: bytes
    captions: tuple[bytes, ...]
    label: int
    suffix: str = "jpg"


def samples(count: int, *, first: int = 0) -> list[Sample]:
    return [Sample(f"{i:09d}", jpeg(i), (f"caption {i}".encode(),), i % 2) for i in range(first, first + count)]


def odd_samples() -> list[Sample]:
    return [
        Sample(f"odd-{i}", image, (b"odd",), i % 2, suffix=name.rpartition(".")[2])
        for i, (name, image) in enumerate(odd_images().items())
    ]


def with_corrupt_image(rows: list[Sample]) -> list[Sample]:
    return [replace(rows[0], image=rows[0].image[:-100]), *rows[1:]]


def with_caption(rows: list[Sample], caption: bytes) -> list[Sample]:
    return [replace(rows[0], captions=(caption,)), *rows[1:]]


def write_examples(path: Path, examples: list[dict[str, bytes | int]]) -> None:
    """Write a TFRecord file of ``tf.Example``s."""
    import tensorflow as tf

    def feature(value: bytes | int):
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for values in examples:
            features = tf.train.Features(feature={name: feature(value) for name, value in values.items()})
            writer.write(tf.train.Example(features=features).SerializeToString())


def write_table(path: Path, columns: dict[str, object], *, metadata: dict[bytes, bytes] | None = None) -> None:
    """Write a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def write_img2dataset(folder: Path, shards: list[list[Sample]], *, compression: str = "") -> None:
    import tensorflow as tf

    def feature(value: bytes | int):
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(shards):
        with tf.io.TFRecordWriter(str(folder / f"{number:05d}.tfrecord"), compression) as writer:
            for row in rows:
                values = {"key": row.key.encode(), "jpg": row.image, "txt": row.captions[0], "url": b"u", "width": 24}
                example = tf.train.Example(
                    features=tf.train.Features(feature={name: feature(value) for name, value in values.items()})
                )
                writer.write(example.SerializeToString())


def write_tfds(folder: Path, shards: list[list[Sample]], *, split: str = "train", info: bool = True) -> None:
    import tensorflow as tf

    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(shards):
        name = f"imagenet2012-{split}.tfrecord-{number:05d}-of-{len(shards):05d}"
        with tf.io.TFRecordWriter(str(folder / name)) as writer:
            for row in rows:
                feature = {
                    "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[row.image])),
                    "file_name": tf.train.Feature(bytes_list=tf.train.BytesList(value=[f"{row.key}.JPEG".encode()])),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[row.label])),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    (folder / "label.labels.txt").write_text("tench\ngoldfish\n")
    if info:
        lengths = [str(len(rows)) for rows in shards]
        (folder / "dataset_info.json").write_text(json.dumps({"splits": [{"name": split, "shardLengths": lengths}]}))


def write_tars(folder: Path, shards: list[list[Sample]], *, mode: str = "w", stats: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(shards):
        with tarfile.open(folder / f"{number:05d}.tar{'.gz' if mode == 'w:gz' else ''}", mode) as tar:
            for row in rows:
                about = json.dumps({"key": row.key, "url": f"http://host/{row.key}", "width": 24}).encode()
                for suffix, content in ((row.suffix, row.image), ("json", about), ("txt", row.captions[0])):
                    member = tarfile.TarInfo(f"{row.key}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        if stats:
            (folder / f"{number:05d}_stats.json").write_text(json.dumps({"count": 9, "successes": len(rows)}))


def write_parquet(folder: Path, shards: list[list[Sample]]) -> None:
    """Write img2dataset's output format ``parquet``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(shards):
        columns = {
            "key": pa.array([row.key for row in rows], pa.string()),
            "txt": pa.array([row.captions[0] for row in rows], pa.binary()).view(pa.string()),
            "status": pa.array(["success" for _ in rows], pa.string()),
            "jpg": pa.array([row.image for row in rows], pa.binary()),
        }
        pq.write_table(pa.table(columns), folder / f"{number:05d}.parquet", row_group_size=2, compression="none")


def write_files(folder: Path, shards: list[list[Sample]], *, failed: int = 0) -> None:
    """Write img2dataset's output format ``files``: images next to a table that also names the failed downloads."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, rows in enumerate(shards):
        (folder / f"{number:05d}").mkdir(parents=True)
        for row in rows:
            (folder / f"{number:05d}" / f"{row.key}.jpg").write_bytes(row.image)
        keys = [row.key for row in rows] + [f"failed-{i}" for i in range(failed)]
        texts = [row.captions[0] for row in rows] + [b"never seen"] * failed
        columns = {
            "key": pa.array(keys, pa.string()),
            "caption": pa.array(texts, pa.binary()).view(pa.string()),
            "status": pa.array(["success"] * len(rows) + ["failed_to_download"] * failed, pa.string()),
        }
        pq.write_table(pa.table(columns), folder / f"{number:05d}.parquet")


def write_class_folders(folder: Path, shards: list[list[Sample]]) -> None:
    for name in ("n01", "n02"):
        (folder / name).mkdir(parents=True)
    for row in (row for rows in shards for row in rows):
        (folder / f"n0{row.label + 1}" / f"{row.key}.{row.suffix}").write_bytes(row.image)


def write_images(folder: Path, shards: list[list[Sample]]) -> list[Sample]:
    rows = [row for shard in shards for row in shard]
    (folder / "images").mkdir(parents=True)
    for row in rows:
        (folder / "images" / f"{row.key}.{row.suffix}").write_bytes(row.image)
    return rows


def write_coco(folder: Path, shards: list[list[Sample]]) -> None:
    rows = write_images(folder, shards)
    images = [{"id": i, "file_name": f"images/{row.key}.{row.suffix}"} for i, row in enumerate(rows)]
    notes = [
        {"id": 0, "image_id": i, "caption": os.fsdecode(caption)}
        for i, row in enumerate(rows)
        for caption in row.captions
    ]
    text = json.dumps({"images": images, "annotations": notes}, ensure_ascii=False)
    (folder / "captions.json").write_bytes(text.encode(errors="surrogateescape"))


def write_csv(folder: Path, shards: list[list[Sample]]) -> None:
    rows = write_images(folder, shards)
    with (folder / "list.csv").open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "title", "url"])
        for row in rows:
            for caption in row.captions:
                writer.writerow([f"images/{row.key}.{row.suffix}", os.fsdecode(caption), "u"])


def write_jsonl(folder: Path, shards: list[list[Sample]]) -> None:
    rows = write_images(folder, shards)
    with (folder / "list.jsonl").open("w", encoding="utf-8", errors="surrogateescape") as file:
        for row in rows:
            captions = [os.fsdecode(caption) for caption in row.captions]
            fields = {"image": f"images/{row.key}.{row.suffix}", "caption": captions}
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")
