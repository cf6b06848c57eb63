# /// script
# dependencies = [
#     "clip-benchmark==1.6.2",
#     "webdataset==1.0.2",
#     "torch==2.14.1",
#     "torchvision==0.29.1",
#     "pillow==13.0.0",
#     "requests==2.34.2",
# ]
# ///
"""Sets as ``clip_benchmark_export_wds`` writes them. PyTorch with its CUDA libraries takes 6 GB of disk.

The data sets are builders of CLIP_benchmark on local files, and lists of paths as its Python interface takes them.
"""

import hashlib
import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory

import webdataset
from clip_benchmark import webdataset_builder as builder
from clip_benchmark.datasets.builder import build_dataset

IMAGES, OUT = Path(sys.argv[1]), Path(sys.argv[3])
LIST = json.loads((IMAGES / "list.json").read_text(encoding="utf-8"))
EMOTIONS = 7
ODD = ["two\nlines", "a separator\u2028inside", "  white space  ", "a form\x0cfeed"]  # captions of the last image


class Listed(list):
    """Pairs of a path and a target, with the names and templates of a data set of CLIP_benchmark."""

    classes: tuple = ()
    templates: tuple = ()


def export(form, dataset, root, *, split="test", is_multilabel=False, image_format="webp"):
    builder.run(
        Namespace(
            dataset=dataset,
            split=split,
            dataset_root=str(root),
            output=str(OUT / form),
            retrieval=False,
            multilabel=is_multilabel,
            image_format=image_format,
            max_count=10_000,
            max_size=1_000_000_000,
        )
    )


def export_retrieval(form, dataset, root):
    """Export by the Python interface: the command asks a retrieval set for its classes and fails."""
    found = build_dataset(
        dataset, root=str(root), split="test", transform=builder.PIL_to_bytes("png"), task="zeroshot_retrieval"
    )
    builder.convert_retrieval_dataset(found, "test", str(OUT / form), image_format="png")


def write_fer2013(root):
    for split, rows in (("test", LIST[: EMOTIONS + 1]), ("train", LIST[:EMOTIONS])):
        for number in range(EMOTIONS):
            (root / split / str(number)).mkdir(parents=True)
        for i, row in enumerate(rows):
            shutil.copyfile(IMAGES / row["file"], root / split / str(i % EMOTIONS) / row["file"])


def write_flickr8k(root):
    root.mkdir()
    lines = ["image,caption"]
    for row in LIST[:6]:
        name = f"{Path(row['file']).stem}.jpg"  # CLIP_benchmark takes no other suffix
        shutil.copyfile(IMAGES / row["file"], root / name)
        lines += [f"{name},{caption}" for caption in row["captions"]]
    (root / "flickr8k_test_karpathy.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_voc2007(root):
    base = root / "VOCdevkit/VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True)
    names = ["aeroplane", "bicycle", "cat", "tvmonitor"]
    stems = [f"{i + 1:06d}" for i in range(8)]
    for i, row in enumerate(LIST[:8]):
        shutil.copyfile(IMAGES / row["file"], base / f"JPEGImages/{stems[i]}.jpg")
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        objects = [f"<object><name>{names[(i + j) % 4]}</name>{box}</object>" for j in range(i % 4)]  # some have none
        (base / f"Annotations/{stems[i]}.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")
    (base / "ImageSets/Main/aeroplane_test.txt").write_text("".join(f"{stem} -1\n" for stem in stems))


def write_listed():
    labeled = Listed((str(IMAGES / row["file"]), row["label"]) for row in LIST)
    labeled.classes = ("rock, or stone", "tree", "water")
    labeled.templates = ("a photo of {c}.", "{c}", "an image of (a) {c}!")
    builder.convert_dataset(labeled, "val", str(OUT / "paths"), transform=builder.path_to_bytes, max_count=5)
    captioned = [(str(IMAGES / row["file"]), row["captions"]) for row in LIST]
    captioned[-1] = (captioned[-1][0], ODD)
    builder.convert_retrieval_dataset(
        captioned, "test", str(OUT / "odd_captions"), transform=builder.path_to_bytes, max_count=5
    )


def read(folder, split):
    """The samples as CLIP_benchmark reads them, with the keys and the bytes of images by webdataset."""
    kind = folder / "dataset_type.txt"
    task = "zeroshot_retrieval" if kind.exists() and "retrieval" in kind.read_text() else "zeroshot_classification"
    dataset = build_dataset("wds/set", root=str(folder), split=split, transform=lambda image: image, task=task)
    count = int((folder / split / "nshards.txt").read_text())
    urls = [str(folder / split / f"{i}.tar") for i in range(count)]
    samples = {}
    for raw, (image, target) in zip(webdataset.WebDataset(urls, shardshuffle=False), dataset, strict=True):
        content = next(raw[suffix] for suffix in ("webp", "png", "jpg") if suffix in raw)
        sample = {"image": hashlib.sha256(content).hexdigest(), "size": image.size}
        if hasattr(target, "tolist"):
            sample["labels"] = [i for i, value in enumerate(target.tolist()) if value]
        else:
            sample |= {"captions": target} if isinstance(target, list) else {"labels": [target]}
        samples[raw["__key__"]] = sample
    found = {"samples": samples}
    if dataset.classes:
        prompts = [[template.format(c=name) for template in dataset.templates] for name in dataset.classes]
        found |= {"classes": dataset.classes, "templates": dataset.templates, "prompts": prompts}
    return found


def main():
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write_fer2013(root / "fer2013")
        write_flickr8k(root / "flickr8k")
        write_voc2007(root / "voc2007")
        for split in ("test", "train"):
            export("wds_fer2013", "fer2013", root / "fer2013", split=split)
        export_retrieval("wds_flickr8k", "flickr8k", root / "flickr8k")
        export("wds_voc2007_multilabel", "voc2007_multilabel", root / "voc2007", is_multilabel=True, image_format="jpg")
    write_listed()
    found = {
        f"{path.parent.parent.name}/{path.parent.name}": read(path.parent.parent, path.parent.name)
        for path in sorted(OUT.glob("*/*/nshards.txt"))
    }
    (OUT / "read.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
