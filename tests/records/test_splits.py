"""Splits by names of files and folders: those of ``datasets``, and no false alarms for other names."""

import json

import pytest
from support.conversions import call, captions, error_of, ingest, keys, write_tar
from support.dumps import jpeg, write_table

from clipa_eqx.errors import DataError


def write(folder, *names):
    """Write tables of one row; the caption is the name of the file."""
    for i, name in enumerate(names):
        write_table(folder / name, {"image": [jpeg(i)], "caption": [name]})


def names_of(folder):
    return sorted(key.rpartition("/")[0] for key in keys(folder))


SHARDS = [f"data/train-0000{i}-of-00002.parquet" for i in range(2)]
# Layouts with splits: files, the split to choose, its files.
LAYOUTS = {
    "shards": ([*SHARDS, "data/test-00000-of-00001.parquet"], "train", SHARDS),
    "with a hash": (
        ["data/train-00000-of-00001-b42a775f407cee45.parquet", "data/val-00000-of-00001-0aa.parquet"],
        "validation",
        ["data/val-00000-of-00001-0aa.parquet"],
    ),
    "other words": (
        ["data/train-00000-of-00001.parquet", "data/restval-00000-of-00001.parquet"],
        "restval",
        ["data/restval-00000-of-00001.parquet"],
    ),
    "a configuration": (
        ["en/train-00000-of-00001.parquet", "en/extra-00000-of-00001.parquet"],
        "extra",
        ["en/extra-00000-of-00001.parquet"],
    ),
    "converted": (["default/train/0000.parquet", "default/test/0000.parquet"], "test", ["default/test/0000.parquet"]),
    "partial": (
        ["default/partial-train/0000.parquet", "default/test/0000.parquet"],
        "train",
        ["default/partial-train/0000.parquet"],
    ),
    "folders": (
        ["train/a.parquet", "train/b/c.parquet", "dev/a.parquet"],
        "train",
        ["train/a.parquet", "train/b/c.parquet"],
    ),
    "files": (["train.parquet", "Test.parquet"], "test", ["Test.parquet"]),
    "words in names": (["cc12m_train_0.parquet", "cc12m_eval_0.parquet"], "eval", ["cc12m_eval_0.parquet"]),
    "years": (["train2017/0.parquet", "val2017/0.parquet"], "val", ["val2017/0.parquet"]),
    "no split": (["train.parquet", "more.parquet"], "train", ["train.parquet"]),
}

# Layouts of one set.
ONE_SET = {
    "shards of one split": SHARDS,
    "LAION": [f"part-0000{i}-of-00002.parquet" for i in range(2)],
    "LAION in data": [f"data/part-0000{i}-of-00002.parquet" for i in range(2)],
    "Spark": [f"part-0000{i}-5b54c5d5-bbcf-484d-a2ce-0d6f73df1a36-c000.snappy.parquet" for i in range(2)],
    "DataComp": ["00a0ea3d18ce4a9a8b4b6d2a1b0e0f3e.parquet", "ffe1ea3d18ce4a9a8b4b6d2a1b0e0f3e.parquet"],
    "img2dataset": ["00000.parquet", "00001.parquet"],
    "words inside of words": ["trained.parquet", "contest.parquet", "valley/devices.parquet"],
    "folders": ["a/0.parquet", "b/0.parquet"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_splits_have_to_be_chosen(layout, tmp_path):
    files, split, chosen = LAYOUTS[layout]
    write(tmp_path / "source", *files)
    with pytest.raises(DataError, match="holds several splits, choose with --split A or --split A,B"):
        ingest(tmp_path / "source", tmp_path / "out", kind="parquet")
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="parquet", split=split)
    assert names_of(tmp_path / "out") == sorted(chosen)
    assert manifest.rows_read == len(chosen)


@pytest.mark.parametrize("layout", ONE_SET)
def test_other_names_are_one_set(layout, tmp_path):
    write(tmp_path / "source", *ONE_SET[layout])
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="parquet")
    assert names_of(tmp_path / "out") == sorted(ONE_SET[layout])
    assert "split" not in manifest.info


def test_a_message_counts_files_and_rows_and_names_what_has_no_split(tmp_path, capsys):
    write(tmp_path / "source", "train/0.parquet", "train/1.parquet", "val/0.parquet", "more.parquet")
    assert call("parquet", tmp_path / "source", tmp_path / "out") == 2
    assert (
        "train (2 files, 2 rows), val (1 file, 1 row), and 1 file, 1 row of no split, to be given as a pattern: "
        "more.parquet" in error_of(capsys)
    )
    assert call("parquet", tmp_path / "source", tmp_path / "out", "--split", "test") == 2
    assert "has no split 'test'; it has: train, val" in error_of(capsys)
    assert call("parquet", tmp_path / "source/train", tmp_path / "out", "--split", "test") == 2
    assert "has no split 'test'; names of its files and folders hold none" in error_of(capsys)


def test_a_split_by_its_own_name_before_the_usual_one(tmp_path):
    write(tmp_path / "source", "val.parquet", "validation.parquet", "dev.parquet", "train.parquet")
    for split, files in {"validation": ["validation"], "valid": ["dev", "val", "validation"], "dev": ["dev"]}.items():
        ingest(tmp_path / "source", tmp_path / split, kind="parquet", split=split)
        assert names_of(tmp_path / split) == [f"{file}.parquet" for file in files]


def test_files_of_no_split_are_counted(tmp_path):
    write(tmp_path / "source", "train.parquet", "more.parquet", "test.parquet")
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="parquet", split="train")
    assert (manifest.info["split"], manifest.info["files_of_no_split"]) == ("train", 1)


def test_missing_shards_are_an_error_unless_a_pattern_chooses_files(tmp_path):
    source = tmp_path / "source"
    write(source, "data/train-00001-of-00005.parquet", "data/train-00003-of-00005.parquet")
    with pytest.raises(
        DataError, match=r"lacks 3 of its shards: data/train-00000-of-00005, data/train-00002-of-00005, "
    ):
        ingest(source, tmp_path / "out", kind="parquet")
    assert ingest(f"{source}/**/*.parquet", tmp_path / "out", kind="parquet").rows_read == 2


def test_two_copies_of_one_split_are_an_error(tmp_path):
    write(tmp_path / "source", *SHARDS, "data/train-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"two copies of data/train: -of-00001 and -of-00002; remove one"):
        ingest(tmp_path / "source", tmp_path / "out", kind="parquet")


def test_several_data_sets_are_an_error_unless_a_pattern_joins_them(tmp_path):
    source = tmp_path / "source"
    write(source, "en/train-00000-of-00001.parquet", "fr/train/0000.parquet")
    with pytest.raises(DataError, match=r"several data sets, give the folder of one: en/ \(1 file\), fr/ \(1 file\)"):
        ingest(source, tmp_path / "out", kind="parquet")
    assert ingest(f"{source}/*/**/*.parquet", tmp_path / "out", kind="parquet").rows_read == 2


def write_other(kind, folder):
    """Files of another kind of source in two splits; the names of the files of train, and of the keys in it."""
    if kind == "webdataset":
        for split in ("train", "validation"):
            write_tar(folder / f"cc12m-{split}-0000.tar", [(f"{split}.jpg", jpeg(0)), (f"{split}.txt", b"a")])
        return ["train"]
    if kind == "pairs":
        for split in ("train", "val"):
            (folder / split).mkdir(parents=True)
            (folder / split / "a.jpg").write_bytes(jpeg(0))
            (folder / split / "a.txt").write_text("a")
        return ["train/a"]
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        (folder / split / f"{split}.jpg").write_bytes(jpeg(0))
        if kind == "csv":
            (folder / f"{split}.csv").write_text(f"file,caption\n{split}/{split}.jpg,a\n")
        elif kind == "json":
            listed = [{"file": f"../{split}/{split}.jpg", "caption": "a"}]
            (folder / "annotations").mkdir(exist_ok=True)
            (folder / f"annotations/captions_{split}2017.json").write_text(json.dumps(listed))
        else:
            (folder / split / "metadata.csv").write_text(f"file_name,text\n{split}.jpg,a\n")
    return {"csv": ["train/train.jpg"], "json": ["../train/train.jpg"]}.get(kind, ["train.jpg"])


@pytest.mark.parametrize("kind", ["webdataset", "pairs", "csv", "json", "metadata.csv"])
def test_other_sources_ask_too(kind, tmp_path):
    found = write_other(kind, tmp_path / "source")
    source = kind if kind in ("webdataset", "pairs") else "captions"
    with pytest.raises(DataError, match=r"holds several splits, choose with --split A or --split A,B: .*train \("):
        ingest(tmp_path / "source", tmp_path / "out", kind=source)
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind=source, split="train")
    assert keys(tmp_path / "out") == found
    assert manifest.info["split"] == "train"
    other = "val" if kind in ("webdataset", "pairs") else "test"
    assert ingest(tmp_path / "source", tmp_path / "both", kind=source, split=f"train,{other}").rows_written == 2


def test_tfrecords_of_several_splits_ask_too(tmp_path, capsys):
    (tmp_path / "source").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        (tmp_path / "source" / name).touch()
    assert call("img2dataset", tmp_path / "source", tmp_path / "out") == 2
    assert "choose with --split A or --split A,B: train (2 files), validation (1 file)" in error_of(capsys)


def test_names_of_photos_are_no_splits(tmp_path):
    for name in ("train/eval_1", "dev board/test", "cars/train station"):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".jpg").write_bytes(jpeg(0))
        path.with_suffix(".txt").write_text(name)
    assert ingest(tmp_path / "source", tmp_path / "out", kind="pairs").rows_written == 3


def write_split_column(folder, *values, first=0, name="data/test-00000-of-00001.parquet"):
    rows = range(first, first + len(values))
    columns = {"image": [jpeg(i) for i in rows], "caption": [str(i) for i in rows], "split": list(values)}
    write_table(folder / name, columns)


def test_a_column_of_splits_decides_if_names_of_files_do_not(tmp_path, capsys):
    source = tmp_path / "source"
    write_split_column(source, "train", "val", "train", None, "test", name="data/test-00000-of-00002.parquet")
    write_split_column(source, "val", "train", first=5, name="data/test-00001-of-00002.parquet")
    assert call("parquet", source, tmp_path / "out") == 2
    assert (
        "several splits in its column 'split', choose with --split A or --split A,B: test (1 row), train (3 rows), "
        "val (2 rows)" in error_of(capsys)
    )
    for split, expected in {"train": "026", "test": "4", "val,test": "145"}.items():
        manifest = ingest(source, tmp_path / split, kind="parquet", split=split)
        assert "".join(captions(tmp_path / split)) == expected
        assert (manifest.rows_read, manifest.info["split"]) == (len(expected), split)
    assert keys(tmp_path / "test") == ["data/test-00000-of-00002.parquet/00000004"]
    assert call("parquet", source, tmp_path / "out", "--split", "dev") == 2
    assert "has no split 'dev' in its column 'split'; it has: test (1 row), " in error_of(capsys)


@pytest.mark.parametrize("split", [None, "train"])
def test_a_table_without_the_column_that_others_have_is_an_error(split, tmp_path):
    write_table(tmp_path / "a.parquet", {"image": [jpeg(1), jpeg(2)], "caption": ["a", "b"], "split": ["train", "x"]})
    write_table(tmp_path / "b.parquet", {"image": [jpeg(3)], "caption": ["c"]})
    write_table(tmp_path / "c.parquet", {"image": [], "caption": []})
    with pytest.raises(DataError, match=r"1 table without the column 'split' that others have, such as b\.parquet;"):
        ingest(tmp_path, tmp_path.parent / "out", kind="parquet", split=split)


def test_a_column_of_splits_does_not_decide_if_names_of_files_do(tmp_path):
    write_split_column(tmp_path / "source", "train", "restval", name="data/train-00000-of-00001.parquet")
    write_split_column(tmp_path / "source", "val", first=2, name="data/validation-00000-of-00001.parquet")
    ingest(tmp_path / "source", tmp_path / "out", kind="parquet", split="train")
    assert captions(tmp_path / "out") == ["0", "1"]


@pytest.mark.parametrize("values", [("train", "train"), ("a", "b"), (None, None)])
def test_a_column_of_one_split_or_of_other_values_is_one_set(values, tmp_path):
    write_split_column(tmp_path / "source", *values)
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="parquet")
    assert (manifest.rows_written, "split" in manifest.info) == (2, False)


def test_damage_in_a_table_of_several_splits_loses_an_unknown_number(tmp_path):
    path = tmp_path / "source/data/test-00000-of-00001.parquet"
    write_split_column(tmp_path / "source", *["train", "val"] * 40)
    data = bytearray(path.read_bytes())
    data[200:4000] = bytes(3800)
    path.write_bytes(data)
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="parquet", split="val")
    assert manifest.rows_dropped == {"truncated shard": 1}


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.jsonl"])
@pytest.mark.parametrize("is_sorted", [True, False])
def test_a_list_with_a_column_of_splits_asks_too(name, is_sorted, tmp_path, capsys):
    lines = [("a", "train"), ("a", "train"), ("b", "val"), ("c", "train"), ("d", "test"), ("d", "test")]
    if not is_sorted:
        lines = lines[::2] + lines[1::2]
    source = tmp_path / "source"
    source.mkdir()
    for i, image in enumerate("abcd"):
        (source / f"{image}.jpg").write_bytes(jpeg(i))
    rows = [
        {"file": f"{image}.jpg", "caption": f"{image}{i}", "split": split} for i, (image, split) in enumerate(lines)
    ]
    if name.endswith("jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        between = "," if name.endswith("csv") else "\t"
        text = "\n".join(between.join(values) for values in [rows[0].keys(), *(row.values() for row in rows)])
    (source / name).write_text(text)
    assert call("captions", source, tmp_path / "out") == 2
    assert "choose with --split A or --split A,B: test (2 rows), train (3 rows), val (1 row)" in error_of(capsys)
    for split, found in {"train": ["a.jpg", "c.jpg"], "val,test": ["b.jpg", "d.jpg"]}.items():
        manifest = ingest(source, tmp_path / split, kind="captions", split=split, records_per_shard=1)
        assert sorted(keys(tmp_path / split)) == found
        assert len(captions(tmp_path / split)) == 3
        assert manifest.rows_dropped == {}
    assert call("captions", source, tmp_path / "out", "--split", "dev") == 2
    assert "has no split 'dev' in its column 'split'" in error_of(capsys)


def test_a_list_without_splits_refuses_the_flag(tmp_path):
    (tmp_path / "list.csv").write_text("file,caption\na.jpg,a\n")
    with pytest.raises(DataError, match="has no split 'train': it has no column 'split'"):
        ingest(tmp_path / "list.csv", tmp_path / "out", kind="captions", split="train")
