"""Miniatures of ImageNet and its evaluation sets in the layouts in which they are downloaded, with published labels."""

import functools
import io
import json
import tarfile

import numpy as np
from scipy.io import savemat

from clipa_eqx.evals.prompts import wordnet_ids
from support.dumps import jpeg

IDS = tuple(wordnet_ids())

# The first validation images of ImageNet: number, ILSVRC2012_ID of the devkit (lines of its
# ILSVRC2012_validation_ground_truth.txt), WordNet id (TFDS 4.9.10, imagenet2012/validation_labels.txt), and labels of
# ReaL (timm 1.0.31, imagenet_real_labels.json).
VALIDATION = (
    (1, 490, "n01751748", []),
    (2, 361, "n09193705", [970, 795]),
    (3, 171, "n02105855", [230, 231]),
    (4, 822, "n04263257", [809]),
    (5, 297, "n03125729", [516, 850]),
    (6, 482, "n01735189", [57]),
    (7, 13, "n02346627", [334]),
    (8, 704, "n02776631", [700]),
    (11, 649, "n01917289", [109]),
    (16, 6, "n02066245", [147]),
)
NAMES = [f"ILSVRC2012_val_{number:08d}.JPEG" for number, *_ in VALIDATION]

# Classes of ObjectNet: folder, name, classes of ImageNet, and for each of these its label, its name, and its line in
# ObjectNet's imagenet_to_label_2012_v2, counted from 0 (wise-ft, src/datasets/objectnet_metadata).
OBJECTNET = (
    ("alarm_clock", "Alarm clock", ((409, "analog clock", 426), (530, "digital clock", 427))),
    ("banana", "Banana", ((954, "banana", 230),)),
    ("bicycle", "Bicycle", ((444, "bicycle-built-for-two, tandem bicycle, tandem", 160), (671, "mountain bike", 161))),
    ("full_sized_towel", "Bath towel", ((434, "bath towel", 816),)),
)
NOT_IN_IMAGENET = ("squeegee", "Squeegee")


def jpegs(names):
    """An image for each name."""
    return {name: jpeg(i) for i, name in enumerate(names)}


def write(folder, files):
    """Write files by path in a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def tar(files, *, mode="w"):
    """A tar archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def ground_truth():
    """The lines of the devkit's list: published ones for ``VALIDATION``, others for the rest of the 50,000."""
    lines = [(7 * i) % 1000 + 1 for i in range(50_000)]
    for number, rank, *_ in VALIDATION:
        lines[number - 1] = rank
    return lines


def real_json():
    """ReaL's list: published labels for ``VALIDATION``, others for the rest of the 50,000."""
    entries = [[i % 1000] for i in range(50_000)]
    for number, _, _, labels in VALIDATION:
        entries[number - 1] = labels
    return json.dumps(entries)


@functools.cache
def devkit_ids():
    """WordNet id by ILSVRC2012_ID: published ones for ``VALIDATION``, the others in an order that is not sorted."""
    known = {rank: one for _, rank, one, _ in VALIDATION}
    others = iter(sorted(set(IDS) - set(known.values()), reverse=True))
    return {rank: known[rank] if rank in known else next(others) for rank in range(1, 1001)}


@functools.cache
def devkit():
    """The files of ILSVRC2012_devkit_t12 that matter, and two others."""
    rows = [(rank, one, 0) for rank, one in devkit_ids().items()] + [(1001, "n00001740", 3)]
    synsets = np.zeros((len(rows), 1), [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")])
    for i, (rank, one, children) in enumerate(rows):
        synsets[i, 0] = (float(rank), one, f"words of {one}", float(children))
    mat = io.BytesIO()
    savemat(mat, {"synsets": synsets}, do_compression=True)
    truth = "".join(f"{line}\n" for line in ground_truth())
    return {
        "ILSVRC2012_devkit_t12/readme.txt": b"about the devkit",
        "ILSVRC2012_devkit_t12/evaluation/VOCreadxml.m": b"",
        "ILSVRC2012_devkit_t12/data/meta.mat": mat.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }


def solution():
    """Kaggle's LOC_val_solution.csv, which is in no order."""
    boxes = " 156 48 272 332"
    lines = [
        f"{name.partition('.')[0]},{one}{boxes} {one}{boxes} "
        for name, (*_, one, _) in zip(NAMES, VALIDATION, strict=True)
    ]
    return "\n".join(["ImageId,PredictionString", *reversed(lines)]) + "\n"


def mappings():
    """ObjectNet's mappings, with every class of ImageNet named."""
    names, numbers = {}, {}
    for label, name, line in (one for *_, classes in OBJECTNET for one in classes):
        names[line], numbers[label] = name, line
    free = iter(sorted(set(range(1000)) - names.keys(), reverse=True))
    for label in range(1000):
        if label not in numbers:
            numbers[label] = next(free)
            names[numbers[label]] = f"class {label}"
    return {
        "folder_to_objectnet_label.json": json.dumps(dict([NOT_IN_IMAGENET, *((f, n) for f, n, _ in OBJECTNET)])),
        "objectnet_to_imagenet_1k.json": json.dumps(
            {name: "; ".join(one for _, one, _ in reversed(classes)) for _, name, classes in OBJECTNET}
        ),
        "pytorch_to_imagenet_2012_id.json": json.dumps({str(label): line for label, line in numbers.items()}),
        "imagenet_to_label_2012_v2": "".join(f"{names[line]}\n" for line in range(1000)),
    }
