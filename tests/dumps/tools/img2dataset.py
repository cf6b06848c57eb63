# /// script
# dependencies = [
#     "img2dataset==1.47.0",
#     "webdataset==0.2.111",
#     "tensorflow==2.21.0",
#     "tensorflow-io==0.37.1",
#     "opencv-python-headless==4.14.0.94",
#     "pyarrow==26.0.1",
#     "pandas==2.3.3",
#     "numpy==2.4.6",
#     "albumentations==1.4.24",
# ]
# ///
"""Downloads by img2dataset in its four forms, and with DataComp's settings.

The list has 12 images; some occur twice, and downloads that fail in two ways.

Some captions are difficult: quotes with a line end, letters beyond ASCII, an empty one, a missing one. One row has an
empty list in a column that is kept: the tool loses this row in its form ``tfrecord``, and counts it as a success.
"""

import hashlib
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FORMS = ("tfrecord", "webdataset", "parquet", "files")


def rows(images: Path, url: str) -> list[tuple[str, str | None]]:
    """URLs and captions."""
    listed = json.loads((images / "list.json").read_text(encoding="utf-8"))
    found = [(f"{url}/{row['file']}", row["captions"][0]) for row in listed]
    found.insert(2, (f"{url}/gone.jpg", "a photo of a dead link"))
    found.insert(5, (f"{url}/list.json", "a text, not a photo"))
    found.insert(7, (f"{url}/00.jpg", 'a "red" square,\nagain\tand été 日本'))
    found.append((f"{url}/01.jpg", ""))
    found.append((f"{url}/02.jpg", None))
    return found


def write(folder: Path, form: str, table: Path) -> None:
    """Download the list in a form."""
    from img2dataset import download

    download(
        url_list=str(table),
        output_folder=str(folder / form),
        output_format=form,
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        save_additional_columns=["similarity", "tags"],
        number_sample_per_shard=6,
        resize_mode="no",
        skip_reencode=True,
        processes_count=1,
        thread_count=4,
        timeout=10,
        disallowed_header_directives=[],
    )


def write_datacomp(folder: Path, found: list[tuple[str, str | None]]) -> None:
    """Download the first rows as DataComp's script does: metadata and shards of a scale in two folders."""
    from img2dataset import download

    metadata, shards = folder / "metadata/small", folder / "shards/small"
    metadata.mkdir(parents=True)
    shards.mkdir(parents=True)
    urls, captions = zip(*found, strict=True)
    uids = [hashlib.md5(str(i).encode()).hexdigest() for i in range(len(found))]
    table = pa.table({"uid": uids, "url": urls, "text": captions})
    pq.write_table(table, metadata / f"{hashlib.md5(b'pool').hexdigest()}.parquet")
    download(
        url_list=str(metadata),
        image_size=512,
        output_folder=str(shards),
        processes_count=1,
        thread_count=4,
        resize_mode="keep_ratio_largest",
        resize_only_if_bigger=True,
        output_format="webdataset",
        input_format="parquet",
        url_col="url",
        caption_col="text",
        save_additional_columns=["uid"],
        number_sample_per_shard=10000,
        oom_shard_count=8,
    )


def row(image: bytes, caption: str | None) -> dict[str, object]:
    """A row as ``read.json`` has it."""
    return {"captions": [] if caption is None else [caption], "image": hashlib.sha256(image).hexdigest()}


def read_tfrecord(folder: Path):
    """Read the form with TensorFlow."""
    import tensorflow as tf

    for path in sorted(folder.glob("*.tfrecord")):
        for item in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            feature = tf.train.Example.FromString(item).features.feature
            values = {name: feature[name].bytes_list.value[0] for name in ("key", "jpg", "txt")}
            yield values["key"].decode(), row(values["jpg"], values["txt"].decode())


def read_webdataset(folder: Path):
    """Read the form with webdataset, which also wrote it."""
    import webdataset

    paths = [str(path) for path in sorted(folder.glob("*.tar"))]
    for sample in webdataset.WebDataset(paths, shardshuffle=False, empty_check=False):
        yield sample["__key__"], row(sample["jpg"], sample["txt"].decode())


def read_parquet(folder: Path):
    """Read the form with pyarrow, which also wrote it."""
    for path in sorted(folder.glob("*.parquet")):
        for values in pq.read_table(path).to_pylist():
            if values["jpg"] is not None:
                yield values["key"], row(values["jpg"], values["caption"])


def read_files(folder: Path):
    """Read the form: an image and its text."""
    for path in sorted(folder.glob("*/*.jpg")):
        yield path.stem, row(path.read_bytes(), path.with_suffix(".txt").read_bytes().decode())


def failed(folder: Path):
    """Read the rows without an image from the tables next to the shards."""
    for path in sorted(folder.glob("*.parquet")):
        for values in pq.read_table(path).to_pylist():
            if values["status"] != "success":
                yield values["key"], {"captions": [values["caption"]], "image": None, "status": values["status"]}


def main() -> None:
    images, url, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    urls, captions = zip(*rows(images, url), strict=True)
    similarity = [i / 16 for i in range(len(urls))]
    tags = [[] if i == 9 else ["photo"] for i in range(len(urls))]
    table = out / "list.parquet"
    pq.write_table(pa.table({"url": urls, "caption": captions, "similarity": similarity, "tags": tags}), table)
    found = {}
    for form in FORMS:
        write(out, form, table)
        read = {"tfrecord": read_tfrecord, "webdataset": read_webdataset, "parquet": read_parquet, "files": read_files}
        found[form] = {**dict(read[form](out / form)), **dict(failed(out / form))}
    table.unlink()
    write_datacomp(out / "datacomp", rows(images, url)[:5])
    shards = out / "datacomp/shards/small"
    found["datacomp"] = {**dict(read_webdataset(shards)), **dict(failed(shards))}
    text = json.dumps(found, ensure_ascii=False, indent=1, sort_keys=True)
    (out / "read.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
