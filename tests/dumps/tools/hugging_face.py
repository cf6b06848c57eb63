# /// script
# dependencies = ["datasets==5.2.0", "pillow==13.0.0", "pyarrow==26.0.1"]
# ///
"""Folders as the library ``datasets`` writes and reads them: Parquet as on the hub, saved sets, folders of images."""

import csv
import hashlib
import json
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

IMAGES, OUT = Path(sys.argv[1]), Path(sys.argv[3])
HOME = tempfile.mkdtemp()
os.environ.update(HF_HOME=HOME, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")

import datasets  # noqa: E402 - reads the environment when it is imported
from datasets.table import embed_table_storage  # noqa: E402

ROWS = json.loads((IMAGES / "list.json").read_text(encoding="utf-8"))
CLASSES = [name for _, name in sorted({(row["label"], row["class"]) for row in ROWS})]
SPLITS = {"train": ROWS[:7], "validation": ROWS[7:9], "test": ROWS[9:]}
LABEL = datasets.ClassLabel(names=CLASSES)
TEXTS = datasets.List(datasets.Value("string"))


def labeled(rows, *, hidden=False):
    """Images with labels; those of a hidden test split are -1."""
    columns = {"image": paths(rows), "label": [-1 if hidden else row["label"] for row in rows]}
    return datasets.Dataset.from_dict(columns, datasets.Features(image=datasets.Image(), label=LABEL))


def captioned(rows):
    """Images with lists of captions and lists of labels."""
    columns = {
        "image": paths(rows),
        "caption": [row["captions"] for row in rows],
        "labels": [sorted({row["label"], 2}) for row in rows],
        "filename": [row["file"] for row in rows],
    }
    features = datasets.Features(
        image=datasets.Image(), caption=TEXTS, labels=datasets.List(LABEL), filename=datasets.Value("string")
    )
    return datasets.Dataset.from_dict(columns, features)


def paths(rows):
    return [str(IMAGES / row["file"]) for row in rows]


def push(data, split, folder, *, shards=1):
    """Write the files that ``push_to_hub`` uploads, by the same steps."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(shards):
        shard = data.shard(num_shards=shards, index=index, contiguous=True).with_format("arrow")
        shard = shard.map(embed_table_storage, batched=True, keep_in_memory=True).with_format(None)
        shard.to_parquet(folder / f"{split}-{index:05d}-of-{shards:05d}.parquet")


def copy(rows, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        shutil.copyfile(IMAGES / row["file"], folder / row["file"])


def write_parquet():
    for split, rows in SPLITS.items():
        push(labeled(rows, hidden=split == "test"), split, OUT / "labeled/data", shards=2 if split == "train" else 1)
        push(captioned(rows), split, OUT / "captioned/data")
    for split in ("train", "test"):
        push(labeled(ROWS[10:]), split, OUT / "configs/labels")
        push(captioned(ROWS[10:]), split, OUT / "configs/captions")
    for split in ("validation", "test"):  # as the hub's branch of converted sets
        (OUT / f"converted/default/{split}").mkdir(parents=True)
        shutil.copyfile(
            OUT / f"captioned/data/{split}-00000-of-00001.parquet", OUT / f"converted/default/{split}/0000.parquet"
        )
    # Without the steps of push_to_hub, cells hold the paths of images only.
    copy(ROWS[:4], OUT / "paths")
    os.chdir(OUT / "paths")
    data = captioned(ROWS[:4]).cast_column("image", datasets.Image(decode=False))
    data = data.map(lambda row: {"image": {"bytes": None, "path": row["filename"]}}, features=data.features)
    data.to_parquet(OUT / "paths/train.parquet")


def write_saved():
    data = datasets.DatasetDict({split: captioned(rows) for split, rows in SPLITS.items()})
    data.save_to_disk(OUT / "saved", num_shards={"train": 2, "validation": 1, "test": 1})
    labeled(ROWS).select([5, 1, 3]).save_to_disk(OUT / "saved_one")
    # Results of map stay in the folder of the set that it read.
    datasets.load_from_disk(OUT / "saved_one").map(lambda row: {"label": 0})
    for path in (OUT / "saved_one").glob("cache-*.arrow"):
        path.rename(path.with_name("cache-0123456789abcdef.arrow"))


def write_folders():
    for split, rows in SPLITS.items():
        rows = rows[:3]
        for kind in ("csv", "jsonl", "parquet"):
            copy(rows, OUT / f"metadata_{kind}/{split}")
        with open(OUT / f"metadata_csv/{split}/metadata.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["file_name", "text"], *([row["file"], row["captions"][-1]] for row in rows)])
        lines = [json.dumps({"file_name": row["file"], "text": row["captions"][-1]}) + "\n" for row in rows]
        (OUT / f"metadata_jsonl/{split}/metadata.jsonl").write_text("".join(lines), encoding="utf-8")
        table = {"file_name": [row["file"] for row in rows], "text": [row["captions"][-1] for row in rows]}
        datasets.Dataset.from_dict(table).to_parquet(OUT / f"metadata_parquet/{split}/metadata.parquet")
        for row in rows:
            copy([row], OUT / f"classes/{split}/{row['class']}")
        (OUT / "tars").mkdir(exist_ok=True)
        with tarfile.open(OUT / f"tars/{split}-0000.tar", "w") as tar:
            # The library reads the suffixes of the first samples only, and loses other images.
            for row in (row for row in rows if row["file"].endswith(".jpg")):
                stem, _, suffix = row["file"].partition(".")
                text = Path(HOME, f"{stem}.txt")
                text.write_text(row["captions"][0], encoding="utf-8")
                tar.add(IMAGES / row["file"], f"{stem}.{suffix}")
                tar.add(text, f"{stem}.txt")


def rows_of(data):
    """Rows as the library gives them: captions, labels, names of classes, and the bytes of images."""
    images = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    for name in images:
        data = data.cast_column(name, datasets.Image(decode=False))
    described = []
    for row in data:
        image = next(row[name] for name in images if row[name] is not None)
        content = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
        captions = next((row[name] for name in ("caption", "text", "txt") if name in row), [])
        names = [
            getattr(feature, "feature", feature).names
            for name, feature in data.features.items()
            if name in ("label", "labels")
        ]
        described.append(
            {
                "image": hashlib.sha256(content).hexdigest(),
                "captions": [captions] if isinstance(captions, str) else captions,
                "label": row.get("label", row.get("labels")),
                "classes": names[0] if names else None,
                "name": row.get("filename") or row.get("__key__") or Path(image["path"]).name,
            }
        )
    return described


def read():
    forms = {}
    for name in ("labeled", "captioned", "converted", "metadata_csv", "metadata_jsonl", "classes", "tars"):
        forms[name] = datasets.load_dataset(str(OUT / name))
    forms["metadata_parquet"] = datasets.load_dataset("imagefolder", data_dir=str(OUT / "metadata_parquet"))
    for name in ("labels", "captions"):
        forms[f"configs/{name}"] = datasets.load_dataset(str(OUT / f"configs/{name}"))
    for name in ("saved", "saved_one"):
        forms[name] = datasets.load_from_disk(OUT / name)
    os.chdir(OUT / "paths")
    forms["paths"] = datasets.load_dataset("parquet", data_files="train.parquet")
    return {
        name: {split: rows_of(data) for split, data in (form.items() if isinstance(form, dict) else [("", form)])}
        for name, form in forms.items()
    }


write_parquet()
write_saved()
write_folders()
(OUT / "read.json").write_text(json.dumps(read(), indent=1, sort_keys=True), encoding="utf-8")
shutil.rmtree(HOME)
