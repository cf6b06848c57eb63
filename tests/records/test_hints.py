"""Hints after the wrong kind of source: for each layout and each kind that is not for it, the named one converts it."""

import json
import re

import pytest
from support import dumps
from support.conversions import call, error_of
from support.dumps import jpeg, samples, write_table

from clipa_eqx.data.array_record_reader import open_records
from conversion.records.sources.kinds import SOURCES


def img2dataset_tars(folder):
    dumps.write_tars(folder, [samples(2)], stats=True)
    write_table(folder / "00000.parquet", {"key": ["0"], "status": ["success"], "caption": ["a"], "url": ["u"]})


def img2dataset_examples(folder):
    dumps.write_img2dataset(folder, [samples(2)])
    write_table(folder / "00000.parquet", {"key": ["0"], "status": ["success"], "caption": ["a"], "url": ["u"]})
    (folder / "00000_stats.json").write_text(json.dumps({"count": 2, "successes": 2}))


def img2dataset_files(folder):
    dumps.write_files(folder, [samples(2)])
    (folder / "00000_stats.json").write_text(json.dumps({"count": 2, "successes": 2}))


def tars(folder):
    dumps.write_tars(folder, [samples(2)])


def imagenet_examples(folder):
    dumps.write_img2dataset(folder, [samples(2)])
    (folder / "00000.tfrecord").rename(folder / "train-00000-of-00001")


def tfds(folder):
    dumps.write_tfds(folder, [samples(2)])
    (folder / "features.json").write_text("{}")


def tfds_splits(folder):
    dumps.write_tfds(folder, [samples(2)], split="train")
    dumps.write_tfds(folder, [samples(2)], split="test")


def hub(folder):
    images = [row.image for row in samples(2)]
    write_table(folder / "data/train-00000-of-00001.parquet", {"image": images, "text": ["a", "b"]})
    (folder / "README.md").write_text("# A data set")


def images_with_texts(folder):
    for row in dumps.write_images(folder, [samples(2)]):
        (folder / "images" / f"{row.key}.txt").write_text("a cat")


def images_with_a_list(folder):
    dumps.write_csv(folder, [samples(2)])


def coco(folder):
    dumps.write_coco(folder, [samples(2)])


def image_folder(folder):
    folder.mkdir()
    for i in range(2):
        (folder / f"{i}.jpg").write_bytes(jpeg(i))
    (folder / "metadata.jsonl").write_text("".join(f'{{"file_name": "{i}.jpg", "text": "a"}}\n' for i in range(2)))


def class_folders(folder):
    dumps.write_class_folders(folder, [samples(2)])


TRAIN = ("--split", "train")
LABELS = ("--label-column", "label")
# For each layout: the kinds that read it, with the flags that they need.
LAYOUTS = {
    img2dataset_tars: {"img2dataset": (), "webdataset": ()},
    img2dataset_examples: {"img2dataset": ()},
    img2dataset_files: {"img2dataset": (), "parquet": ()},
    tars: {"img2dataset": (), "webdataset": ()},
    imagenet_examples: {"img2dataset": ()},
    tfds: {"tfds": (), "img2dataset": LABELS},
    tfds_splits: {"tfds": TRAIN, "img2dataset": (*LABELS, *TRAIN)},
    hub: {"parquet": ()},
    images_with_texts: {"pairs": ()},
    images_with_a_list: {"captions": ()},
    coco: {"captions": ()},
    image_folder: {"captions": ()},
    class_folders: {"folder": ()},
}
# A folder of images is one class folder, and texts next to images are shown as not read: no mistake.
NOT_REFUSED = {
    ("images_with_texts", "folder"),
    ("coco", "folder"),
    ("img2dataset_files", "folder"),
}
CASES = [(layout, kind) for layout in LAYOUTS for kind in SOURCES if (layout.__name__, kind) not in NOT_REFUSED]


@pytest.mark.parametrize(("layout", "kind"), CASES, ids=lambda one: one if isinstance(one, str) else one.__name__)
def test_the_named_source_converts_the_layout(layout, kind, tmp_path, capsys):
    kinds = LAYOUTS[layout]
    layout(tmp_path / "source")
    if kind in kinds:
        assert call(kind, tmp_path / "source", tmp_path / "out", *kinds[kind]) == 0
        assert len(open_records(tmp_path / "out")) == 2
        return
    assert call(kind, tmp_path / "source", tmp_path / "out") == 2
    message = error_of(capsys)
    named = re.search(r"is it for the source `(\w+)`\?$", message)
    assert named, message
    assert named[1] in kinds, message
    assert not (tmp_path / "out").exists()
