"""Other forms of data: tables of the hub, paths in columns, labels in tars, lists without structure."""

import io
import json
import tarfile

import pytest
from support import dumps
from support.conversions import ingest, ingest_folder
from support.dumps import jpeg, samples, write_table

from clipa_eqx.errors import DataError


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def test_a_table_of_the_hub_has_images_in_maps_and_class_names(source, tmp_path):
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    write_table(
        source / "train-00000-of-00001.parquet",
        {"image": [{"bytes": jpeg(i), "path": f"{i}.jpg"} for i in range(3)], "label": [0, 1, -1]},
        metadata={b"huggingface": json.dumps({"info": {"features": features}}).encode()},
    )
    manifest, records = ingest_folder("parquet", tmp_path, label_column="label")
    assert manifest.class_names == ("cat", "dog")
    assert manifest.rows_dropped == {"missing label": 1}
    assert [(one.image, one.label, one.captions) for one in records] == [(jpeg(0), 0, ()), (jpeg(1), 1, ())]
    assert [one.key for one in records] == [f"train-00000-of-00001.parquet/0000000{i}" for i in range(2)]


def test_a_table_of_paths_finds_its_images(source, tmp_path):
    dumps.write_images(tmp_path / "elsewhere", [samples(2)])
    paths = [f"images/00000000{i}.jpg" for i in range(3)]
    write_table(source / "list.parquet", {"file_name": paths, "text": [["a", "b"], ["c"], ["d"]]})
    manifest, records = ingest_folder("parquet", tmp_path, images=str(tmp_path / "elsewhere"), key_column="file_name")
    assert manifest.rows_dropped == {"missing image": 1}
    assert [(one.key, one.captions) for one in records] == [(paths[0], ("a", "b")), (paths[1], ("c",))]


def test_a_table_without_images_is_refused(source, tmp_path):
    write_table(source / "list.parquet", {"url": ["http://a"], "caption": ["a"]})
    with pytest.raises(DataError, match=r"list\.parquet: no column looks like the image.*it has: url, caption"):
        ingest_folder("parquet", tmp_path)


def test_failed_downloads_in_a_table_of_images_are_distinct_from_missing_ones(source, tmp_path):
    write_table(
        source / "0.parquet",
        {
            "key": ["a", "b", "c"],
            "jpg": [jpeg(0), None, None],
            "caption": ["1", "2", "3"],
            "status": ["success", "failed_to_resize", "success"],
        },
    )
    manifest, _ = ingest_folder("parquet", tmp_path)
    assert manifest.rows_dropped == {"download failed": 1, "missing image": 1}
    assert manifest.info["examples"]["download failed"][0]["detail"] == "failed_to_resize"


def test_a_tar_may_hold_labels_folders_and_other_suffixes(source, tmp_path):
    with tarfile.open(source / "0.tar", "w") as tar:
        for name, content in (
            ("./train/a.b.png", b""),
            ("./train/1.JPEG", jpeg(1)),
            ("./train/1.cls", b"3"),
            ("./train/2.seg.jpg", b"a mask"),
            ("./train/2.webp", jpeg(2)),
            ("./train/2.cls", b"7"),
            ("__about__.json", b"{}"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    manifest, records = ingest_folder("webdataset", tmp_path, label_column="cls")
    assert [(one.key, one.image, one.label) for one in records] == [
        ("./train/1", jpeg(1), 3),
        ("./train/2", jpeg(2), 7),
    ]
    assert manifest.rows_dropped == {"missing image": 1}


def test_captions_of_a_tar_come_from_the_field_asked_for(source, tmp_path):
    rows = samples(2)
    with tarfile.open(source / "0.tar", "w") as tar:
        for row in rows:
            about = json.dumps({"caption": "from the web", "re_caption": f"better {row.key}"}).encode()
            for suffix, content in (("jpg", row.image), ("json", about)):
                member = tarfile.TarInfo(f"{row.key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    assert [one.captions for one in ingest_folder("webdataset", tmp_path)[1]] == [("from the web",)] * 2
    (tmp_path / "out").rename(tmp_path / "first")
    _, records = ingest_folder("webdataset", tmp_path, caption_column="re_caption")
    assert [one.captions for one in records] == [(f"better {row.key}",) for row in rows]


def test_a_sidecar_that_is_no_json_costs_the_row_only_if_it_is_needed(source, tmp_path):
    dumps.write_tars(source, [samples(2)])
    path = source / "00000.tar"
    path.write_bytes(path.read_bytes().replace(b'{"key": "000000001"', b'<"key": "000000001"'))
    assert ingest_folder("webdataset", tmp_path)[0].rows_dropped == {}
    (tmp_path / "out").rename(tmp_path / "first")
    assert ingest_folder("webdataset", tmp_path, keep=("url",))[0].rows_dropped == {"row cannot be parsed": 1}


def test_captions_and_other_features_of_tfds_can_be_asked_for(source, tmp_path):
    dumps.write_img2dataset(source, [samples(2)])
    (source / "00000.tfrecord").rename(source / "laion400m-full.tfrecord-00000-of-00001")
    _, records = ingest_folder("tfds", tmp_path, image_column="jpg", caption_column="txt", keep=("width",))
    assert [(one.key, one.captions, one.label, dict(one.extra)) for one in records] == [
        (f"00000000{i}", (f"caption {i}",), None, {"width": 24}) for i in range(2)
    ]
    (tmp_path / "out").rename(tmp_path / "first")
    assert len(ingest_folder("img2dataset", tmp_path)[1]) == 2  # the same files (docs/reference.md F8.1)


def test_an_example_that_is_none_is_one_lost_row(source, tmp_path):
    import tensorflow as tf

    dumps.write_img2dataset(source, [samples(1)])
    (good,) = tf.data.TFRecordDataset(str(source / "00000.tfrecord")).as_numpy_iterator()
    with tf.io.TFRecordWriter(str(source / "00000.tfrecord")) as writer:
        for content in (b"\xff\xff", good):
            writer.write(content)
    manifest, records = ingest_folder("img2dataset", tmp_path)
    assert (len(records), manifest.rows_dropped) == (1, {"row cannot be parsed": 1})


def test_lists_of_maps_and_other_separators_are_read(source, tmp_path):
    rows = dumps.write_images(source, [samples(3)])
    entries = [{"image": f"images/{row.key}.jpg", "caption": ["a", "b"], "id": 7 + i} for i, row in enumerate(rows)]
    (source / "1.json").write_text(json.dumps(entries[:1]))
    (source / "2.csv").write_text(f"image_name| comment_number| comment\nimages/{rows[1].key}.jpg| 0| a, b\n")
    (source / "3.tsv").write_text(f'\ufefftitle\tfilepath\nsaid "a\timages/{rows[2].key}.jpg\n', encoding="utf-8")
    manifest, records = ingest_folder("captions", tmp_path)
    assert [one.captions for one in records] == [("a", "b"), ("a, b",), ('said "a',)]
    assert [one.image for one in records] == [row.image for row in rows]
    assert manifest.rows_dropped == {}


def test_lines_with_too_few_fields_are_lost_rows(source, tmp_path):
    dumps.write_csv(source, [samples(2)])
    with (source / "list.csv").open("a") as file:
        file.write("images/000000000.jpg\n,no path,u\n\n")
    dropped = {"row cannot be parsed": 1, "wrong number of cells": 1}
    assert ingest_folder("captions", tmp_path)[0].rows_dropped == dropped


def test_labels_can_come_from_a_list(source, tmp_path):
    rows = dumps.write_images(source, [samples(2)])
    lines = [f"images/{row.key}.jpg,{7 + i}" for i, row in enumerate(rows)]
    (source / "list.csv").write_text("\n".join(["path,class", *lines]))
    _, records = ingest_folder("captions", tmp_path, label_column="class")
    assert [(one.label, one.captions) for one in records] == [(7, ()), (8, ())]


def test_class_folders_number_by_name_and_count_what_they_leave(source, tmp_path):
    for name in ("b/deep", "a", "c"):
        (source / name).mkdir(parents=True)
    (source / "b/deep/1.JPEG").write_bytes(jpeg(1))
    (source / "a/2.png").write_bytes(dumps.odd_images()["rgba.png"])
    (source / "a/readme.md").touch()
    (source / "stray.jpg").write_bytes(jpeg(3))
    manifest, records = ingest_folder("folder", tmp_path)
    assert manifest.class_names == ("a", "b", "c")
    assert [(one.key, one.label) for one in records] == [("a/2.png", 0), ("b/deep/1.JPEG", 1)]
    assert manifest.rows_dropped == {"outside of a class folder": 1}
    assert manifest.info["ignored_files"] == {".md": 1}


def test_images_and_keys_that_are_not_utf8_are_reported(source, tmp_path):
    (source / "a").mkdir()
    name = source / "a" / "caf\udce9.jpg"
    name.write_bytes(jpeg(0))
    manifest, _ = ingest_folder("folder", tmp_path)
    assert manifest.rows_dropped == {"key is not UTF-8": 1}
    assert manifest.info["examples"]["key is not UTF-8"][0]["key"] == "a/caf\\udce9.jpg"
    (source / "a").rename(source / "caf\udce9")
    with pytest.raises(DataError, match=r"class folder caf\\udce9 has a name that is not UTF-8"):
        ingest(tmp_path / "source", tmp_path / "second", kind="folder")


def test_names_of_files_that_are_not_utf8_do_not_spoil_the_manifest(source, tmp_path):
    dumps.write_tars(source, [[dumps.replace(row, key=f"\udce9{row.key}") for row in samples(2)]])
    data = (source / "00000.tar").read_bytes()
    (source / "caf\udce9.tar").write_bytes(data[: data.index(b"caption 1") + 3])
    (source / "00000.tar").unlink()
    manifest, _ = ingest_folder("webdataset", tmp_path)
    assert manifest.rows_dropped == {"key is not UTF-8": 1, "truncated shard": 1}
    assert manifest.info["damaged_sources"][0]["source"] == "caf\\udce9.tar"
    assert manifest.info["examples"]["truncated shard"][0]["key"] == "\\udce9000000001"
