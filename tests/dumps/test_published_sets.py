"""Every command of docs/published_sets.md, on a small set in the layout of the real one, with a score that is known."""

import io
import json
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
from PIL import Image
from support.commands_of_pages import commands_by_heading, run_command
from support.dumps import jpeg
from support.imagenet_layouts import (
    IDS,
    NAMES,
    OBJECTNET,
    VALIDATION,
    devkit,
    jpegs,
    mappings,
    real_json,
    tar,
    write,
)
from support.paths import ROOT
from support.planted_models import plant

from clipa_eqx.data.images.decode import decode_image
from clipa_eqx.evals import zero_shot
from clipa_eqx.evals.prompts import named_class_names, named_templates, wordnet_ids
from clipa_eqx.evals.published_sets import PUBLISHED_SETS
from conversion.weights.released import RELEASED

PAGE = "published_sets.md"
SECTIONS = commands_by_heading(PAGE)
IMAGENET = named_class_names("imagenet")
PHOTOS = Path(__file__).parent / "images"
ROWS = json.loads((PHOTOS / "list.json").read_text(encoding="utf-8"))
OTHER = jpeg(99)
"""The image of every class that no other image has."""


@pytest.fixture
def few_templates(monkeypatch):
    """Two templates in place of a published set: fewer prompts, from the same names."""
    monkeypatch.setattr(zero_shot, "named_templates", lambda _: FEW)


FEW = named_templates("clip_paper")[-2:]


def scored(heading, folder, monkeypatch, wanted, *, number=0, templates=FEW):
    """Run the conversion and the scoring number ``number`` of a section on a model planted for it; the result."""
    monkeypatch.chdir(folder)
    plant(folder / "models/l14", wanted, templates=templates)
    convert, evaluate = SECTIONS[heading][2 * number : 2 * number + 2]
    assert run_command(convert, "--workers", 1) == 0
    assert run_command(evaluate) == 0
    assert convert.split()[5] in evaluate.split()  # the records that are scored are those of the command above
    return json.loads(Path(evaluate.split()[-1]).read_text())


def check(result, *, images, classes, correct):
    """Compare what was scored and the score; the small set is flagged."""
    assert (result["count"], result["class_count"]) == (images, classes)
    assert result["correct_top1"] == correct
    assert result["passport"]["set"]["flags"][0].startswith(f"not a published set: {images:,} images of {classes:,}")


def archives(folder):
    """ImageNet's validation images as downloaded."""
    files = {
        "ILSVRC2012_img_val.tar": tar(jpegs(NAMES)),
        "ILSVRC2012_devkit_t12.tar.gz": tar(devkit(), mode="w:gz"),
    }
    write(folder / "ILSVRC2012", files)


def test_imagenet(tmp_path, monkeypatch, capsys):
    archives(tmp_path)
    labels = [IDS.index(one) for _, _, one, _ in VALIDATION]
    wanted = {jpegs(NAMES)[name]: IMAGENET[label] for name, label in zip(NAMES, labels, strict=True)}
    wanted[jpegs(NAMES)[NAMES[3]]] = "tench"  # a mistake of the model
    templates = named_templates("clip_paper")
    result = scored("ImageNet-1k validation", tmp_path, monkeypatch, wanted, templates=templates)
    check(result, images=len(NAMES), classes=1000, correct=len(NAMES) - 1)
    assert result["prompt_count"] == 81_000
    assert [label for label, count in enumerate(result["per_class_count"]) if count] == sorted(labels)
    shown = capsys.readouterr().out
    assert "set: not a published set: 10 images of 1,000 classes; ImageNet validation has 50,000 images" in shown
    assert re.search(r"class names: complete in every prompt of 16 tokens for 99\d of 1,000 classes, in none", shown)


def test_the_fingerprint_of_a_result_is_expected_by_the_next(tmp_path, monkeypatch, few_templates, capsys):
    archives(tmp_path)
    result = scored("ImageNet-1k validation", tmp_path, monkeypatch, {OTHER: "tench"})
    (again,) = SECTIONS["Is it the published set?"]
    found = result["passport"]["data"]["content_fingerprint"]
    assert run_command(again.replace("FINGERPRINT", found)) == 0
    assert len(json.loads(Path("again.json").read_text())["passport"]["set"]["flags"]) == 1  # the numbers
    assert run_command(again.replace("FINGERPRINT", found[::-1]), "--overwrite") == 2
    assert f"has the fingerprint {found}, expected {found[::-1]}" in capsys.readouterr().err


def test_real_counts_each_of_its_labels(tmp_path, monkeypatch, few_templates):
    archives(tmp_path)
    write(tmp_path, {"real.json": real_json()})
    labels = {name: found for name, (*_, found) in zip(NAMES, VALIDATION, strict=True) if found}
    wanted = {jpegs(NAMES)[name]: IMAGENET[found[-1]] for name, found in labels.items()}
    result = scored("ImageNet-ReaL", tmp_path, monkeypatch, wanted)
    check(result, images=len(labels), classes=1000, correct=len(labels))
    assert "the conversion dropped rows: 1 missing label" in result["passport"]["set"]["flags"]


def test_v2_counts_its_folders_as_numbers(tmp_path, monkeypatch, few_templates):
    labels = (0, 2, 10, 65, 100, 999)
    files = {f"imagenetv2-matched-frequency-format-val/{i}/{i:x}af{i}.jpeg": jpeg(i) for i in labels}
    write(tmp_path, {"imagenetv2-matched-frequency.tar.gz": tar(files, mode="w:gz")})
    result = scored("ImageNetV2", tmp_path, monkeypatch, {jpeg(i): IMAGENET[i] for i in labels})
    check(result, images=len(labels), classes=1000, correct=len(labels))


@pytest.mark.parametrize(
    ("heading", "folder", "listed"),
    [
        ("ImageNet-A", "imagenet-a", "imagenet_a"),
        ("ImageNet-R", "imagenet-r", "imagenet_r"),
        ("ImageNet-Sketch", "sketch", "imagenet"),
    ],
)
def test_folders_of_wordnet_ids(heading, folder, listed, tmp_path, monkeypatch, few_templates):
    names = wordnet_ids(listed)
    own = {one: jpeg(i) for i, one in enumerate(list(names)[:: len(names) // 20])}
    write(tmp_path / folder, {**{f"{one}/a_0.jpg": own.get(one, OTHER) for one in names}, "README.txt": "about it"})
    wanted = {**{image: names[one] for one, image in own.items()}, OTHER: list(names.values())[1]}
    result = scored(heading, tmp_path, monkeypatch, wanted)
    # All classes without an image of their own have one that looks like class 1.
    check(result, images=len(names), classes=len(names), correct=len(own) + 1)


@pytest.mark.parametrize("number", [0, 1], ids=["ImageNet's classes", "its own names"])
def test_objectnet(number, tmp_path, monkeypatch, few_templates):
    pixels = {f"{folder}/{i}af.png": decode_image(jpeg(i)) for i, (folder, *_) in enumerate(OBJECTNET)}
    files = {f"images/{key}": png(image) for key, image in pixels.items()}
    write(tmp_path / "objectnet-1.0", {**files, **{f"mappings/{name}": text for name, text in mappings().items()}})
    names = [name.lower() if number else IMAGENET[classes[-1][0]] for _, name, classes in OBJECTNET]
    # Two pixels are cut from each side.
    wanted = {png(image[2:-2, 2:-2]): name for image, name in zip(pixels.values(), names, strict=True)}
    result = scored("ObjectNet", tmp_path, monkeypatch, wanted, number=number)
    check(result, images=4, classes=4 if number else 6, correct=4)


def test_coco_and_flickr30k(tmp_path, monkeypatch):
    splits, karpathy = ("train", "restval", "val", "test"), []
    for i, row in enumerate(ROWS):
        sentences = [{"raw": text, "tokens": text.split(), "imgid": i, "sentid": k} for k, text in captions_of(row)]
        entry = {"filename": row["file"], "imgid": i, "split": splits[i % 4], "sentences": sentences}
        karpathy.append(entry)
    of_coco = [{**entry, "filepath": "val2014"} for entry in karpathy]
    of_val2017 = {
        "images": [{"file_name": row["file"], "id": i} for i, row in enumerate(ROWS)],
        "annotations": [
            {"image_id": i, "id": 10 * i + k, "caption": text}
            for i, row in enumerate(ROWS)
            for k, text in captions_of(row)
        ],
    }
    lists = {
        "dataset_coco.json": {"images": of_coco, "dataset": "coco"},
        "coco/annotations/captions_val2017.json": of_val2017,
        "dataset_flickr30k.json": {"images": karpathy, "dataset": "flickr30k"},
    }
    write(tmp_path, {name: json.dumps(content) for name, content in lists.items()})
    for folder in ("coco/val2014", "coco/val2017", "flickr30k-images"):
        shutil.copytree(PHOTOS, tmp_path / folder)
    of_test = ROWS[3::4]
    for heading, number, rows in (("COCO", 0, of_test), ("COCO", 1, ROWS), ("Flickr30k", 0, of_test)):
        wanted = {(PHOTOS / row["file"]).read_bytes(): row["captions"][0] for row in rows}
        shutil.rmtree(tmp_path / "models", ignore_errors=True)
        result = scored(heading, tmp_path, monkeypatch, wanted, number=number, templates=None)
        total = sum(len(row["captions"]) for row in rows)
        assert (result["count"], result["caption_count"]) == (len(rows), total)
        assert result["image_to_text_recall@1"] == 1
        assert result["text_to_image_recall@1"] >= len(rows) / total
        flag = f"not a published set: {len(rows)} images with {total} captions; COCO, Karpathy's test split has 5,000"
        assert result["passport"]["set"]["flags"][0].startswith(flag)


def captions_of(row):
    return list(enumerate(row["captions"]))


def test_any_labeled_set(tmp_path, monkeypatch, few_templates):
    kinds = ("basset hound", "maine coon", "sphynx")
    write(tmp_path / "pets", {f"{name}/{k}.jpg": jpeg(10 * k + i) for i, name in enumerate(kinds) for k in range(2)})
    wanted = {jpeg(10 * k + i): name for i, name in enumerate(kinds) for k in range(2)}
    check(scored("Any labeled set", tmp_path, monkeypatch, wanted), images=6, classes=3, correct=6)


def test_a_set_of_clip_benchmark(tmp_path, monkeypatch):
    export = Path(__file__).parent / "written/clip_benchmark_export"
    shutil.copytree(export / "wds_fer2013", tmp_path / "wds_fer2013")
    read = json.loads((export / "read.json").read_text(encoding="utf-8"))["wds_fer2013/test"]
    result = scored("Any labeled set", tmp_path, monkeypatch, {OTHER: "angry"}, number=1)
    assert (result["count"], result["class_count"]) == (len(read["samples"]), len(read["classes"]))
    assert result["template_count"] == len(read["templates"])


def test_each_command_of_the_page_is_run_here_or_in_the_rehearsal():
    assert list(SECTIONS) == [
        "A released model, step by step",
        "Is it the published set?",
        "ImageNet-1k validation",
        "ImageNet-ReaL",
        "ImageNetV2",
        "ImageNet-A",
        "ImageNet-R",
        "ImageNet-Sketch",
        "ObjectNet",
        "COCO",
        "Flickr30k",
        "Any labeled set",
    ]
    pairs = {heading: len(commands) // 2 for heading, commands in list(SECTIONS.items())[2:]}
    assert sum(pairs.values()) == 13  # numbers above: 10 with one pair, ObjectNet, COCO and any labeled set with two


@pytest.mark.parametrize("known", PUBLISHED_SETS, ids=lambda one: one.name)
def test_the_page_has_the_numbers_by_which_a_set_is_known(known):
    text = " ".join((ROOT / "docs" / PAGE).read_text(encoding="utf-8").split())
    numbers = [known.images, known.classes or known.captions]
    if known.classes == 125:
        assert f"{known.images:,} of its images, in 113 classes that are 125 classes of ImageNet" in text
    else:
        assert all(f"{number:,}" in text for number in numbers)


def test_published_scores_of_imagenet_are_those_of_the_table_of_released_models():
    text = (ROOT / "docs" / PAGE).read_text(encoding="utf-8")
    table = text.partition("<!-- published-scores -->\n")[2].partition("<!-- /published-scores -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    found = {row[0].strip("`"): float(row[1]) for row in rows}
    assert found == {name: row.top1[0] for name, row in RELEASED.items() if row.profile == "open_clip"}
    assert {len(row) for row in rows} == {11}


@cache
def _encoded(size, content):
    file = io.BytesIO()
    Image.frombytes("RGB", size, content).save(file, "PNG")
    return file.getvalue()


def png(pixels):
    """The content of a PNG file."""
    return _encoded((pixels.shape[1], pixels.shape[0]), pixels.tobytes())
