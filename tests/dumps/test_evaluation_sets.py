"""ImageNet and its evaluation sets as they are downloaded: the published label for every image, in ImageNet's order."""

import io

import numpy as np
import pytest
from PIL import Image
from support.dump_table import run_row
from support.dumps import jpeg
from support.imagenet_layouts import (
    IDS,
    NAMES,
    NOT_IN_IMAGENET,
    OBJECTNET,
    VALIDATION,
    devkit,
    jpegs,
    mappings,
    real_json,
    solution,
    tar,
    write,
)

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.images.decode import decode_image
from clipa_eqx.evals.labels import labels_of
from clipa_eqx.evals.prompts import named_class_names, wordnet_ids
from clipa_eqx.evals.zero_shot import ZeroShotConfig, check_set, class_names_of

IMAGES = jpegs(NAMES)
LABELS = {name: (IDS.index(one),) for name, (_, _, one, _) in zip(NAMES, VALIDATION, strict=True)}
TRAIN = {
    "n01440764/n01440764_18.JPEG": 0,
    "n01440764/n01440764_10026.JPEG": 0,
    "n02102040/n02102040_7.JPEG": 217,
    "n02979186/n02979186_1.JPEG": 482,
}


def converted(command, folder, monkeypatch, *, max_labels=1):
    """Run a command of the table; labels by key, images by key, and the names that the set is scored with."""
    assert run_row(command, folder, monkeypatch) == 0
    source = open_records(folder / command.split()[5])
    config = ZeroShotConfig(data=str(source.folder), max_labels=max_labels)
    check_set(config, source)
    records = list(source)
    return (
        {record.key: labels_of(record) for record in records},
        {record.key: record.image for record in records},
        class_names_of(config, source.manifest.class_names),
    )


def test_the_published_labels_are_those_of_the_names():
    assert (VALIDATION[0][2], LABELS[NAMES[0]]) == ("n01751748", (65,))
    assert (VALIDATION[1][2], LABELS[NAMES[1]]) == ("n09193705", (970,))
    assert named_class_names("imagenet")[970] == "mountain"
    # Two independent sources: ReaL corrects one of these labels, a bakery with a paper towel.
    differ = [number for number, _, one, real in VALIDATION if real and IDS.index(one) not in real]
    assert differ == [8]


@pytest.mark.parametrize(
    ("command", "layout"),
    [
        (
            "python -m conversion.records imagenet imagenet/ data/imagenet-val",
            {**{f"val/{name}": image for name, image in IMAGES.items()}, **devkit()},
        ),
        (
            "python -m conversion.records imagenet ILSVRC2012/ data/imagenet-val --split val",
            {
                "ILSVRC2012_img_val.tar": tar(IMAGES),
                "ILSVRC2012_img_train.tar": tar({"n01440764.tar": tar({"n01440764_18.JPEG": jpeg(50)})}),
                "ILSVRC2012_img_test_v10102019.tar": tar({"test/ILSVRC2012_test_00000001.JPEG": jpeg(51)}),
                "ILSVRC2012_devkit_t12.tar.gz": tar(devkit(), mode="w:gz"),
            },
        ),
        (
            "python -m conversion.records imagenet imagenet-kaggle/ data/imagenet-val --split val",
            {
                **{f"ILSVRC/Data/CLS-LOC/val/{name}": image for name, image in IMAGES.items()},
                "ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_18.JPEG": jpeg(50),
                "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG": jpeg(51),
                "ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml": b"<annotation/>",
                "LOC_synset_mapping.txt": b"n01440764 tench, Tinca tinca\n",
                "LOC_val_solution.csv": solution(),
            },
        ),
        (
            "python -m conversion.records imagenet imagenet-folders/ data/imagenet-val --split val",
            {
                **{f"val/{one}/{name}": IMAGES[name] for name, (_, _, one, _) in zip(NAMES, VALIDATION, strict=True)},
                **{f"train/{name}": jpeg(i) for i, name in enumerate(TRAIN)},
            },
        ),
    ],
    ids=["devkit", "archives", "kaggle", "folders"],
)
def test_validation_images_have_the_same_labels_in_every_layout(command, layout, tmp_path, monkeypatch, capsys):
    write(tmp_path / command.split()[4], layout)
    labels, images, names = converted(command, tmp_path, monkeypatch)
    assert images == IMAGES
    if "folders" in command:  # classes are those that have folders
        assert {key: names[label] for key, (label,) in labels.items()} == {
            key: named_class_names("imagenet")[label] for key, (label,) in LABELS.items()
        }
    else:
        assert labels == LABELS
        assert names == named_class_names("imagenet")
        assert f"validation images of ImageNet by number, {len(NAMES)} of 50,000, with the" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "layout"),
    [
        (
            "python -m conversion.records imagenet ILSVRC2012_img_train/ data/imagenet-train",
            {
                f"{one}.tar": tar({n.partition("/")[2]: jpeg(i) for i, n in enumerate(TRAIN) if n.startswith(one)})
                for one in {name.partition("/")[0] for name in TRAIN}
            },
        ),
        (
            "python -m conversion.records imagenet imagenet-folders/ data/imagenet-train --split train",
            {
                **{f"train/{name}": jpeg(i) for i, name in enumerate(TRAIN)},
                f"val/{VALIDATION[0][2]}/{NAMES[0]}": jpeg(50),
            },
        ),
    ],
    ids=["archives", "folders"],
)
def test_training_images_have_the_class_of_their_archive_or_folder(command, layout, tmp_path, monkeypatch):
    write(tmp_path / command.split()[4], layout)
    labels, images, names = converted(command, tmp_path, monkeypatch)
    assert images == {name.partition("/")[2]: jpeg(i) for i, name in enumerate(TRAIN)}
    assert names == ("tench", "English Springer Spaniel", "cassette player")
    ranks = {0: (0,), 217: (1,), 482: (2,)}
    assert labels == {name.partition("/")[2]: ranks[label] for name, label in TRAIN.items()}


V2 = {f"imagenetv2-matched-frequency-format-val/{i}/{i:x}af{i}.jpeg": jpeg(i) for i in (0, 2, 10, 65, 999)}


@pytest.mark.parametrize(
    "command",
    [
        "python -m conversion.records imagenet imagenetv2-matched-frequency-format-val/ data/imagenet-v2",
        "python -m conversion.records imagenet imagenetv2-matched-frequency.tar.gz data/imagenet-v2",
    ],
)
def test_imagenet_v2_counts_its_folders_in_the_order_of_numbers(command, tmp_path, monkeypatch):
    write(tmp_path, {"imagenetv2-matched-frequency.tar.gz": tar(V2, mode="w:gz"), **V2})
    labels, images, names = converted(command, tmp_path, monkeypatch)
    assert images == {name.partition("/")[2]: image for name, image in V2.items()}
    assert labels == {key: (int(key.partition("/")[0]),) for key in images}
    assert names == named_class_names("imagenet")


@pytest.mark.parametrize(
    ("command", "listed"),
    [
        ("python -m conversion.records imagenet imagenet-a/ data/imagenet-a", "imagenet_a"),
        ("python -m conversion.records imagenet imagenet-r/ data/imagenet-r", "imagenet_r"),
        ("python -m conversion.records imagenet sketch/ data/imagenet-sketch", "imagenet"),
    ],
)
def test_folders_of_wordnet_ids_are_scored_with_the_published_names(command, listed, tmp_path, monkeypatch):
    ids = list(wordnet_ids(listed))
    image = jpeg(1)
    images = {f"{one}/art_0.jpg": image for one in ids}
    write(tmp_path / command.split()[4], {**images, "README.txt": "about it"})
    labels, _, names = converted(command, tmp_path, monkeypatch)
    assert labels == {key: (ids.index(key.partition("/")[0]),) for key in images}
    assert names == named_class_names(listed)


def test_real_labels_are_all_kept_and_images_without_any_are_dropped(tmp_path, monkeypatch):
    write(tmp_path / "imagenet", {**{f"val/{name}": image for name, image in IMAGES.items()}, **devkit()})
    write(tmp_path, {"real.json": real_json()})
    command = "python -m conversion.records imagenet imagenet/ data/imagenet-real --labels real.json"
    labels, images, names = converted(command, tmp_path, monkeypatch, max_labels=2)
    real = {name: tuple(found) for name, (*_, found) in zip(NAMES, VALIDATION, strict=True) if found}
    assert labels == real
    assert images == {name: IMAGES[name] for name in real}
    assert names == named_class_names("imagenet")
    manifest = open_records(tmp_path / "data/imagenet-real").manifest
    assert (manifest.rows_read, manifest.rows_dropped) == (len(NAMES), {"missing label": 1})


@pytest.mark.parametrize(
    "command",
    [
        "python -m conversion.records imagenet objectnet-1.0/ data/objectnet",
        "python -m conversion.records imagenet objectnet-1.0/ data/objectnet-own --own-classes",
    ],
)
def test_objectnet_has_the_classes_of_imagenet_and_no_border(command, tmp_path, monkeypatch):
    pixels = {f"{folder}/{i}af.png": decode_image(jpeg(i)) for i, (folder, *_) in enumerate(OBJECTNET)}
    files = {f"images/{key}": png(with_red_border(image)) for key, image in pixels.items()}
    files[f"images/{NOT_IN_IMAGENET[0]}/b.png"] = png(with_red_border(decode_image(jpeg(50))))
    write(tmp_path / "objectnet-1.0", {**files, **{f"mappings/{name}": text for name, text in mappings().items()}})
    labels, images, names = converted(command, tmp_path, monkeypatch, max_labels=2)
    for key, image in images.items():
        np.testing.assert_array_equal(decode_image(image), pixels[key][1:-1, 1:-1])  # 2 px of the file
    if "--own" in command:
        assert labels == {key: (i,) for i, key in enumerate(pixels)}
        assert names == ("alarm clock", "banana", "bicycle", "bath towel")
    else:
        every = named_class_names("imagenet")
        assert {key: {names[one] for one in found} for key, found in labels.items()} == {
            key: {every[label] for label, *_ in classes} for key, (*_, classes) in zip(pixels, OBJECTNET, strict=True)
        }
        assert len(names) == 6
    manifest = open_records(tmp_path / command.split()[5]).manifest
    assert (manifest.rows_read, manifest.rows_dropped) == (5, {"no class name": 1})


def with_red_border(pixels):
    """The image with a border of one red pixel on each side."""
    framed = np.zeros((pixels.shape[0] + 2, pixels.shape[1] + 2, 3), np.uint8)
    framed[:, :] = (255, 0, 0)
    framed[1:-1, 1:-1] = pixels
    return framed


def png(pixels):
    """The content of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
