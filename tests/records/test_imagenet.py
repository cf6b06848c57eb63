"""Source ``imagenet``: no label is shifted by a list that lacks lines, gaps between numbers, or a mixture of sets."""

import json

import pytest
from support.conversions import call, error_of, ingest, keys
from support.dumps import jpeg
from support.imagenet_layouts import (
    IDS,
    NAMES,
    OBJECTNET,
    VALIDATION,
    devkit,
    devkit_ids,
    ground_truth,
    jpegs,
    mappings,
    real_json,
    solution,
    tar,
    write,
)

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.errors import DataError
from clipa_eqx.evals.prompts import named_class_names
from clipa_eqx.evals.zero_shot import ZeroShotConfig, class_names_of

TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
MAT = "ILSVRC2012_devkit_t12/data/meta.mat"
LABELS = {name: IDS.index(one) for name, (_, _, one, _) in zip(NAMES, VALIDATION, strict=True)}
FLAT = jpegs(NAMES[:3])


def labels(folder):
    return {record.key: record.label for record in open_records(folder)}


def text(lines):
    return "".join(f"{line}\n" for line in lines)


def test_ids_of_the_devkit_are_in_another_order_than_labels(tmp_path):
    assert [devkit_ids()[rank] for rank in range(1, 1001)] != sorted(IDS)
    write(tmp_path / "source", {**devkit(), **FLAT})
    ingest(tmp_path / "source", tmp_path / "out", kind="imagenet")
    assert (
        labels(tmp_path / "out")
        == {name: LABELS[name] for name in FLAT}
        != {name: rank - 1 for name, (_, rank, *_) in zip(FLAT, VALIDATION, strict=False)}
    )


@pytest.mark.parametrize("chosen", [(2,), (0, 2, 9), (9, 1)])
def test_images_are_matched_by_number_whatever_other_images_there_are(chosen, tmp_path):
    write(tmp_path / "source", {**devkit(), **{f"val/part/{NAMES[i]}": jpeg(i) for i in chosen}})
    ingest(tmp_path / "source", tmp_path / "out", kind="imagenet")
    assert labels(tmp_path / "out") == {NAMES[i]: LABELS[NAMES[i]] for i in chosen}


def test_other_devkits_say_their_numbers_in_a_text_file(tmp_path):
    lines = [f"{one} {rank} name_{rank}" for rank, one in devkit_ids().items()]
    folder = "ILSVRC/devkit/data"
    files = {f"{folder}/map_clsloc.txt": text(lines), f"{folder}/ILSVRC2015_clsloc_validation_ground_truth.txt": None}
    files[f"{folder}/ILSVRC2015_clsloc_validation_ground_truth.txt"] = text([*ground_truth(), "", ""])
    write(tmp_path / "source", {**files, **{f"ILSVRC/Data/CLS-LOC/val/{n}": image for n, image in FLAT.items()}})
    ingest(tmp_path / "source", tmp_path / "out", kind="imagenet")
    assert labels(tmp_path / "out") == {name: LABELS[name] for name in FLAT}


def test_what_has_no_label_is_dropped_with_its_reason(tmp_path, capsys):
    files = {**devkit(), **FLAT, "ILSVRC2012_val_00050001.JPEG": jpeg(3), "photo.jpg": jpeg(4), "notes.md": b""}
    write(tmp_path / "source", files)
    assert call("imagenet", tmp_path / "source", tmp_path / "out") == 0
    manifest = open_records(tmp_path / "out").manifest
    assert manifest.rows_dropped == {"missing label": 1, "outside of a class folder": 1}
    assert manifest.rows_read == len(FLAT) + 2
    assert manifest.info["ignored_files"] == {".md": 1}
    shown = capsys.readouterr().out
    assert f"found: validation images of ImageNet by number, 4 of 50,000, with the labels of {TRUTH}\n" in shown
    assert "label 970 (n09193705, mountain)" in shown


def test_a_truncated_archive_gives_its_complete_images_and_one_lost_row(tmp_path):
    archive = tar(jpegs(NAMES))
    write(
        tmp_path / "source", {**devkit(), "ILSVRC2012_img_val.tar": archive[: archive.index(NAMES[5].encode()) + 700]}
    )
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="imagenet")
    assert labels(tmp_path / "out") == {name: LABELS[name] for name in NAMES[:5]}
    assert manifest.rows_dropped == {"truncated shard": 1}


def test_two_layouts_of_one_set_have_equal_records(tmp_path):
    write(tmp_path / "flat", {**devkit(), **{f"val/{name}": image for name, image in FLAT.items()}})
    write(tmp_path / "tar", {**devkit(), "ILSVRC2012_img_val.tar": tar(FLAT)})
    flat, packed = (ingest(tmp_path / one, tmp_path / f"out-{one}", kind="imagenet") for one in ("flat", "tar"))
    assert flat.info["content_fingerprint"] == packed.info["content_fingerprint"]
    again = ingest(tmp_path / "tar", tmp_path / "out-again", kind="imagenet", workers=2)
    assert again == packed


def test_a_changed_list_of_labels_is_a_changed_source(tmp_path, capsys):
    write(tmp_path, {"real.json": real_json(), **{f"source/{name}": image for name, image in FLAT.items()}})
    arguments = ("imagenet", tmp_path / "source", tmp_path / "out", "--labels", tmp_path / "real.json")
    assert call(*arguments) == 0
    changed = json.loads(real_json())
    changed[1] = [3]
    write(tmp_path, {"real.json": json.dumps(changed)})
    assert call(*arguments) == 2
    assert "the source has changed" in error_of(capsys)


REFUSED = {
    "a line less": ({**devkit(), TRUTH: text(ground_truth()[:-1])}, "has 49,999 lines, expected 50,000"),
    "an empty line": ({**devkit(), TRUTH: text([1, "", *ground_truth()[2:]])}, "line 2: '' is no class"),
    "an unknown id": ({**devkit(), TRUTH: text([1001, *ground_truth()[1:]])}, "line 1: '1001' is no class"),
    "names": ({**devkit(), TRUTH: text(["sea snake", *ground_truth()[1:]])}, "line 1: 'sea snake' is no class"),
    "no ids": ({TRUTH: devkit()[TRUTH]}, "next to it neither meta.mat nor map_clsloc.txt"),
    "broken ids": ({**devkit(), MAT: devkit()[MAT][:2000]}, "cannot be read as the meta.mat"),
    "no devkit": ({}, "3 validation images by number, such as val/ILSVRC2012_val_00000001.JPEG, and no labels"),
    "a broken archive": ({"ILSVRC2012_devkit_t12.tar.gz": tar(devkit(), mode="w:gz")[:3000]}, "cannot be read"),
    "another table": ({"LOC_val_solution.csv": "file,label\na,b\n"}, "expected ImageId and PredictionString"),
    "a broken table": ({"LOC_val_solution.csv": "ImageId,PredictionString\nx,n01440764 1 2 3 4\n"}, "line 2 is 'x,n0"),
    "a table of one endless field": ({"LOC_val_solution.csv": "a" * 200_000}, "cannot be read: field larger"),
    "an empty table": ({"LOC_val_solution.csv": ""}, "expected ImageId and PredictionString"),
    "two classes": (
        {"LOC_val_solution.csv": solution().replace("272 332 n01751748", "272 332 n01440764")},
        "line 11 is 'ILSVRC2012_val_00000001,n01751748",
    ),
    "two lists": (
        {**devkit(), "LOC_val_solution.csv": solution()},
        "disagree about the label of validation image 9;",
    ),
    "test images": ({"test/ILSVRC2012_test_00000001.JPEG": jpeg(9)}, "holds the splits test, val; choose one"),
    "training images": ({"train/n01440764/a.JPEG": jpeg(9)}, "holds the splits train, val; choose one with --split"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_labels_that_are_not_certain_are_refused(case, tmp_path, capsys):
    files, words = REFUSED[case]
    write(tmp_path / "source", {**{f"val/{name}": image for name, image in FLAT.items()}, **files})
    assert call("imagenet", tmp_path / "source", tmp_path / "out") == 2
    assert words in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_lists_that_agree_are_one(tmp_path):
    files = {**devkit(), "ILSVRC2012_devkit_t12.tar.gz": tar(devkit(), mode="w:gz"), **FLAT}
    write(tmp_path / "source", files)
    ingest(tmp_path / "source", tmp_path / "out", kind="imagenet")
    assert labels(tmp_path / "out") == {name: LABELS[name] for name in FLAT}


LISTS = {
    "no JSON": ("[[1], ", "is no JSON"),
    "a map": ('{"0": [1]}', "must be a list"),
    "a list less": (json.dumps(json.loads(real_json())[1:]), "has 49,999 lists, expected 50,000"),
    "names": (json.dumps([["tench"], *json.loads(real_json())[1:]]), "list 1 is ['tench'], not class numbers"),
    "numbers of classes beyond": (json.dumps([[1000], *json.loads(real_json())[1:]]), "list 1 is [1000], not class"),
}


@pytest.mark.parametrize("case", LISTS)
def test_another_list_of_labels_is_refused(case, tmp_path, capsys):
    content, words = LISTS[case]
    write(tmp_path, {"real.json": content, **{f"source/{name}": image for name, image in FLAT.items()}})
    assert call("imagenet", tmp_path / "source", tmp_path / "out", "--labels", tmp_path / "real.json") == 2
    assert words in error_of(capsys)


SEVERAL = {
    "variants": (
        ["imagenetv2-matched-frequency-format-val/1/a.jpeg", "imagenetv2-top-images-format-val/1/b.jpeg"],
        "in several folders or archives: imagenetv2-matched-frequency-format-val, imagenetv2-top-images-format-val",
    ),
    "sets": (
        ["imagenet-a/n01440764/a.jpg", "imagenet-r/n01440764/a.jpg"],
        ": imagenet-a, imagenet-r; give one",
    ),
    "no classes": (["cat/1.jpg", "2.jpg"], "no image is in a folder or archive named by a WordNet id"),
    "test images alone": (["ILSVRC2012_test_00000001.JPEG"], "test images are not published"),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_a_mixture_of_sets_is_refused(case, tmp_path, capsys):
    names, words = SEVERAL[case]
    write(tmp_path / "source", jpegs(names))
    assert call("imagenet", tmp_path / "source", tmp_path / "out") == 2
    assert words in error_of(capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--split", "dev"), "has no split 'dev'; it holds no folders or archives of splits"),
        (("--own-classes",), "--own-classes is for ObjectNet"),
        (("--labels", "none.json"), "none of the 1 image of"),
    ],
)
def test_a_flag_that_does_not_fit_is_refused(arguments, words, tmp_path, capsys):
    write(tmp_path / "source", jpegs(["n01440764/a.jpg"]))
    assert call("imagenet", tmp_path / "source", tmp_path / "out", *arguments) == 2
    assert words in error_of(capsys)


def test_an_archive_of_archives_has_to_be_extracted(tmp_path, capsys):
    write(tmp_path, {"ILSVRC2012_img_train.tar": tar({"n01440764.tar": tar(jpegs(["n01440764_1.JPEG"]))})})
    assert call("imagenet", tmp_path / "ILSVRC2012_img_train.tar", tmp_path / "out") == 2
    assert "holds archives, one per class; extract these" in error_of(capsys)


@pytest.mark.parametrize("missing", ["folder_to_objectnet_label.json", "imagenet_to_label_2012_v2"])
def test_objectnet_needs_all_its_mappings(missing, tmp_path, capsys):
    held = {name: content for name, content in mappings().items() if name != missing}
    write(tmp_path / "source", {**{f"mappings/{n}": c for n, c in held.items()}, "images/banana/a.png": jpeg(1)})
    assert call("imagenet", tmp_path / "source", tmp_path / "out") == 2
    assert f"no {missing}; copy it there" in error_of(capsys)


def test_a_name_of_two_classes_of_imagenet_is_refused(tmp_path, capsys):
    held = mappings()
    lines = held["imagenet_to_label_2012_v2"].splitlines()
    lines[5] = "banana"
    held["imagenet_to_label_2012_v2"] = text(lines)
    write(tmp_path / "source", {**{f"mappings/{n}": c for n, c in held.items()}, "images/banana/a.png": jpeg(1)})
    assert call("imagenet", tmp_path / "source", tmp_path / "out") == 2
    assert "'Banana' has no folder" in error_of(capsys)


def test_images_of_objectnet_that_cannot_be_cut_are_counted(tmp_path):
    images = {"images/banana/a.png": jpeg(1), "images/banana/b.png": b"no image", "images/c.png": jpeg(2)}
    write(tmp_path / "source", {**{f"mappings/{n}": c for n, c in mappings().items()}, **images})
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="imagenet")
    assert keys(tmp_path / "out") == ["banana/a.png"]
    assert manifest.rows_dropped == {"outside of a class folder": 1, "undecodable image": 1}


@pytest.mark.parametrize("kind", ["folder", "pairs"])
@pytest.mark.parametrize(
    "names",
    [
        ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"],
        ["val/ILSVRC2012_val_00000001.JPEG"],
        ["images/banana/a.png", "images/bench/a.png", "mappings/objectnet_to_imagenet_1k.json"],
    ],
)
def test_other_sources_name_this_one(kind, names, tmp_path, capsys):
    write(tmp_path / "source", jpegs(names))
    assert call(kind, tmp_path / "source", tmp_path / "out") == 2
    assert "is it for the source `imagenet`?" in error_of(capsys)


def test_validation_images_in_folders_of_other_classes_are_for_folder(tmp_path):
    write(tmp_path / "source", jpegs([f"cat/{NAMES[0]}", f"dog/{NAMES[1]}"]))
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="folder")
    assert (manifest.class_names, manifest.rows_written) == (("cat", "dog"), 2)


def test_a_set_of_numbers_is_scored_with_a_thousand_names_only(tmp_path):
    write(tmp_path / "source", jpegs(["0/a.jpeg", "999/b.jpeg"]))
    ingest(tmp_path / "source", tmp_path / "out", kind="imagenet")
    own = open_records(tmp_path / "out").manifest.class_names
    for choice in ("manifest", "imagenet"):
        assert class_names_of(ZeroShotConfig(data="d", class_names=choice), own) == named_class_names("imagenet")
    with pytest.raises(DataError, match=r"has 1,000 classes .*'imagenet_a' has 200 names"):
        class_names_of(ZeroShotConfig(data="d", class_names="imagenet_a"), own)


def test_the_classes_of_objectnet_refuse_another_number_of_names(tmp_path):
    images = {f"images/{folder}/a.png": jpeg(i) for i, (folder, *_) in enumerate(OBJECTNET)}
    write(tmp_path / "source", {**{f"mappings/{n}": c for n, c in mappings().items()}, **images})
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="imagenet", own_classes=True)
    with pytest.raises(DataError, match=r"has 4 classes \(0 = alarm clock.* has 1,000 names"):
        class_names_of(ZeroShotConfig(data="d", class_names="imagenet"), manifest.class_names)
