# /// script
# dependencies = [
#     "tensorflow-datasets==4.9.10",
#     "tensorflow==2.21.0",
#     "array-record==0.8.6",
#     "pyarrow==26.0.1",
# ]
# ///
"""Data sets of TFDS in its forms: labeled, captioned, with several labels, and with both captions and classes.

The names and features are those of the data sets in TFDS's catalog, so that the folders have the same names.
Arguments: folder of images, their address (not used), folder to write.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

IMAGES, OUT = Path(sys.argv[1]), Path(sys.argv[3])
# Form and number of sets: an ArrayRecord file takes at least 128 KiB, which are nearly all zeros.
FORMS = {"tfrecord": 6, "array_record": 3, "parquet": 6}
LIST = json.loads((IMAGES / "list.json").read_text(encoding="utf-8"))
CLASSES = ["rock", "tree", "water"]
IMAGE = tfds.features.Image(encoding_format="jpeg")


def labeled(row):
    return {"image": str(IMAGES / row["file"]), "label": row["label"], "file_name": row["file"]}


def unlabeled(row):
    return labeled(row) | {"label": -1}


def captioned(row):
    number = LIST.index(row)
    return {
        "image": str(IMAGES / row["file"]),
        "image/filename": row["file"],
        "image/id": number,
        "objects": [{"label": row["label"], "is_crowd": False}] * (number % 3),
        "captions": [{"text": text, "id": 10 * number + i} for i, text in enumerate(row["captions"])],
    }


def relabeled(row):
    number = LIST.index(row)
    return {
        "image": str(IMAGES / row["file"]),
        "original_label": row["label"],
        "real_label": [(row["label"] + i) % 3 for i in range(number % 3)],
        "file_name": row["file"],
    }


def from_the_web(row):
    return {"image": str(IMAGES / row["file"]), "caption": row["captions"][0], "nsfw": row["label"], "url": row["file"]}


def both(row):
    return labeled(row) | {"caption": row["captions"]}


LABELED = {"image": IMAGE, "label": tfds.features.ClassLabel(names=CLASSES), "file_name": tfds.features.Text()}
REAL = {
    "image": IMAGE,
    "original_label": tfds.features.ClassLabel(names=CLASSES),
    "real_label": tfds.features.Sequence(tfds.features.ClassLabel(names=CLASSES)),
    "file_name": tfds.features.Text(),
}
COCO = {
    "image": IMAGE,
    "image/filename": tfds.features.Text(),
    "image/id": np.int64,
    "objects": tfds.features.Sequence({"label": tfds.features.ClassLabel(num_classes=80), "is_crowd": np.bool_}),
    "captions": tfds.features.Sequence({"text": np.str_, "id": np.int64}),
}
WEB = {
    "image": IMAGE,
    "caption": tfds.features.Text(),
    "nsfw": tfds.features.ClassLabel(names=["UNLIKELY", "UNSURE", "NSFW"]),
    "url": tfds.features.Text(),
}
BOTH = LABELED | {"caption": tfds.features.Sequence(tfds.features.Text())}

# Name, config, version, features, supervised keys, number of shards, and for each split its rows and their values.
SETS = [
    ("imagenet2012", "", "5.1.0", LABELED, ("image", "label"), 1, {
        "train": (LIST[:7], labeled), "validation": (LIST[7:], labeled), "test": (LIST[:2], unlabeled),
    }),
    ("coco_captions", "2014", "1.1.0", COCO, None, 1, {"train": (LIST[:8], captioned), "val": (LIST[8:], captioned)}),
    ("imagenet2012_real", "", "1.0.0", REAL, ("image", "real_label"), 1, {"validation": (LIST[:6], relabeled)}),
    ("imagenet_v2", "matched-frequency", "3.0.0", LABELED, ("image", "label"), 1, {"test": (LIST[4:8], labeled)}),
    ("laion400m", "images", "1.0.0", WEB, None, 1, {"train": (LIST[:4], from_the_web)}),
    ("photos", "", "1.0.0", BOTH, ("image", "label"), 2, {"train": (LIST[:4], both)}),
]  # fmt: skip


def write(name, config, version, features, supervised, shards, splits, form):
    set_name = name

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = set_name
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version=version)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=supervised
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(rows, values) for split, (rows, values) in splits.items()}

        def _generate_examples(self, rows, values):
            for number, row in enumerate(rows):
                yield number, values(row)

    builder = Builder(data_dir=OUT / form, file_format=form)
    download = tfds.download.DownloadConfig(num_shards=shards)
    builder.download_and_prepare(download_config=download)
    return builder.data_path


def read(folder):
    """The rows that TFDS reads from a folder: split -> file name -> captions, labels and SHA-256 of the image."""
    builder = tfds.builder_from_directory(folder)
    decoders = {"image": tfds.decode.SkipDecoding()}
    found = {}
    for split in builder.info.splits:
        if builder.info.file_format.value == "array_record":
            rows = builder.as_data_source(split=split, decoders=decoders)
        else:
            rows = tfds.as_numpy(builder.as_dataset(split=split, decoders=decoders))
        found[split] = {}
        for row in rows:
            texts = row.get("caption", row.get("captions", ()))
            texts = texts["text"] if isinstance(texts, dict) else texts
            texts = [texts] if isinstance(texts, bytes) else texts
            label = row.get("label", row.get("real_label", ()))
            key = row.get("file_name", row.get("image/filename", row.get("url")))
            found[split][key.decode()] = {
                "captions": [text.decode() for text in texts],
                "labels": np.atleast_1d(label).tolist(),
                "sha256": hashlib.sha256(row["image"]).hexdigest(),
            }
    return found


forms = {}
for form, count in FORMS.items():
    for one in SETS[:count]:
        folder = write(*one, form)
        forms[str(Path(folder).relative_to(OUT))] = read(folder)
(OUT / "read.json").write_text(json.dumps(forms, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
