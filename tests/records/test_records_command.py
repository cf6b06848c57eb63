"""The command ``python -m conversion.records``: output and exit codes, above all after mistakes."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys

import pytest
from support import dumps
from support.conversions import call, write_tar
from support.dumps import samples
from support.paths import ROOT

from clipa_eqx.commands import command_line
from clipa_eqx.data.array_record_reader import open_records


@pytest.fixture
def source(tmp_path):
    dumps.write_tars(tmp_path / "tars", [samples(3), dumps.with_corrupt_image(samples(2, first=3))])
    return tmp_path / "tars"


def test_converting_verifying_and_comparing(source, tmp_path, capsys):
    out, small = tmp_path / "out", tmp_path / "small"
    assert call("webdataset", source, out) == 0
    shown = capsys.readouterr().out
    assert f"{out}: 4 records in 2 shards" in shown
    assert "rows: 5 read, 4 written, 1 undecodable image" in shown
    assert call("verify", out) == 0
    assert "2 of 2 shards are as written, 4 records" in capsys.readouterr().out
    assert call("diff", out, out) == 0
    assert call("webdataset", source, small, "--limit", 2, "--keep", "url", "width") == 0
    assert dict(open_records(small)[0].extra) == {"url": "http://host/000000000", "width": 24}
    capsys.readouterr()
    assert call("diff", out, small) == 1
    shown = capsys.readouterr().out
    assert "2 keys in both, 0 of them with other content" in shown
    assert f"2 keys only in {out}\n  000000002 (shard-000000-000.array_record, record 2)" in shown
    (out / "shard-000001-000.array_record").unlink()
    assert call("verify", out) == 1
    assert "damaged: shard-000001-000.array_record is missing" in capsys.readouterr().out


def test_damage_and_shared_keys_are_reported_with_advice(tmp_path, capsys):
    dumps.write_tars(tmp_path / "tars", [samples(3), [*samples(1, first=8), dumps.replace(samples(1)[0], label=1)]])
    dumps.write_tars(tmp_path / "tars/more", [[dumps.replace(samples(1)[0], captions=(b"other",))]])
    cut = tmp_path / "tars/00000.tar"
    cut.write_bytes(cut.read_bytes()[: cut.read_bytes().index(b"000000002.jpg") + 700])
    assert call("webdataset", tmp_path / "tars", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "damaged: 00000.tar: 2 rows, then lost: unknown" in shown
    assert "1 duplicate key, 1 duplicate key of another sample" in shown
    assert "--prefix-keys keeps them apart" in shown


def wrong_kind(folder):
    dumps.write_tars(folder / "source", [samples(1)])
    message = r"no \.parquet or \.arrow files in .*is it for the source `webdataset`"
    return ["parquet", folder / "source", folder / "out"], message


def tfrecords_as_tars(folder):
    (folder / "source").mkdir()
    (folder / "source/00000.tfrecord").touch()
    return ["webdataset", folder / "source", folder / "out"], "is it for the source `img2dataset`"


def tars_as_class_folders(folder):
    dumps.write_tars(folder / "source/train", [samples(1)])
    return ["folder", folder / "source", folder / "out"], "no class folders with images"


def images_with_a_list(folder):
    dumps.write_csv(folder / "source", [samples(2)])
    return [
        "folder",
        folder / "source",
        folder / "out",
    ], r"holds 2 \.\w+, 1 \.csv files; is it for the source `captions`"


def images_with_a_list_as_tars(folder):
    dumps.write_csv(folder / "source", [samples(2)])
    return ["webdataset", folder / "source", folder / "out"], "is it for the source `captions`"


def images_with_texts(folder):
    rows = dumps.write_images(folder / "source", [samples(2)])
    for row in rows:
        (folder / "source/images" / f"{row.key}.txt").write_text("a cat")
    said = r"is it for the source `pairs`\?"
    return ["captions", folder / "source/images", folder / "out"], said


def images_alone(folder):
    dumps.write_images(folder / "source", [samples(2)])
    return [
        "folder",
        folder / "source/images",
        folder / "out",
    ], "captions need a list .* for `pairs`; for labels .* a folder per class, for `folder`"


def empty_folder(folder):
    (folder / "source").mkdir()
    return ["webdataset", folder / "source", folder / "out"], "holds no files"


def no_folder(folder):
    return ["parquet", folder / "source", folder / "out"], "source .*/source does not exist"


def existing_destination(folder):
    dumps.write_tars(folder / "source", [samples(1)])
    (folder / "out").mkdir()
    (folder / "out/notes.txt").touch()
    return ["webdataset", folder / "source", folder / "out"], "holds other things than records"


def unreadable_file(folder):
    dumps.write_tars(folder / "source", [samples(1)])
    (folder / "source/00001.tar").symlink_to(folder / "gone.tar")
    return ["webdataset", folder / "source", folder / "out"], r"00001\.tar cannot be read: a link to nothing; fix it"


def unknown_column(folder):
    (folder / "source").mkdir()
    dumps.write_csv(folder / "source", [[*samples(1)]])
    return (
        ["captions", folder / "source", folder / "out", "--caption-column", "text"],
        "no column 'text' for the caption .*it has: filepath, title, url",
    )


def unknown_column_of_tars(folder):
    dumps.write_tars(folder / "source", [samples(1)])
    return (
        ["webdataset", folder / "source", folder / "out", "--caption-column", "re_caption"],
        r"the first samples of .*: no column 're_caption' .* it has: \.jpg, \.json, \.txt, key, url, width",
    )


def unknown_column_of_tfrecords(folder):
    dumps.write_img2dataset(folder / "source", [samples(1)])
    return (
        ["img2dataset", folder / "source", folder / "out", "--key-column", "uid"],
        r"the first examples of .*: no column 'uid' for the key .* it has: jpg, key, txt, url, width",
    )


def no_caption_column(folder):
    (folder / "list.jsonl").write_text('{"image": "a.jpg", "words": "a"}\n')
    return ["captions", folder / "list.jsonl", folder / "out"], "looks like the caption; name it with --caption-column"


def cut_json(folder):
    (folder / "source").mkdir()
    dumps.write_coco(folder / "source", [samples(2)])
    path = folder / "source/captions.json"
    path.write_bytes(path.read_bytes()[:-30])
    return ["captions", folder / "source", folder / "out"], r"captions\.json is not valid JSON"


def several_splits(folder):
    dumps.write_tfds(folder / "source", [samples(1)], split="train")
    dumps.write_tfds(folder / "source", [samples(1)], split="test")
    return [
        "tfds",
        folder / "source",
        folder / "out",
    ], "several splits, choose with --split A or --split A,B: test, train"


def missing_shard_of_tfds(folder):
    dumps.write_tfds(folder / "source", [samples(1), samples(1), samples(1)])
    (folder / "source/imagenet2012-train.tfrecord-00001-of-00003").unlink()
    return ["tfds", folder / "source", folder / "out"], "lacks 1 of its shards: .*00001-of-00003"


def no_driver(folder):
    return ["webdataset", "abfs://bucket/tars", folder / "out"], "adlfs"


def contradiction(folder):
    dumps.write_tars(folder / "source", [samples(1)])
    return ["webdataset", folder / "source", folder / "out", "--max-side", "8", "--min-side", "9"], "smaller than --min"


def no_limit(folder):
    dumps.write_tars(folder / "source", [samples(1)])
    return ["webdataset", folder / "source", folder / "out", "--limit", "0"], "--limit must be at least 1, got 0"


def no_workers(folder):
    dumps.write_tars(folder / "source", [samples(1)])
    return ["webdataset", folder / "source", folder / "out", "--workers", "0"], "--workers must be at least 1, got 0"


def no_class_names(folder):
    dumps.write_class_folders(folder / "source", [samples(2)])
    arguments = ["folder", folder / "source", folder / "out", "--class-names", folder / "names.txt"]
    return arguments, r"--class-names: .*names\.txt cannot be read"


def verify_of_nothing(folder):
    return ["verify", folder / "nowhere"], r"nowhere/manifest\.json does not exist"


def test_lists_and_texts_next_to_class_folders_are_named(tmp_path, capsys):
    dumps.write_class_folders(tmp_path / "source", [samples(2)])
    assert call("folder", tmp_path / "source", tmp_path / "plain") == 0
    assert "not read" not in capsys.readouterr().out
    (tmp_path / "source/list.csv").write_text("file,caption\n")
    (tmp_path / "source/n01/a.txt").write_text("a cat")
    assert call("folder", tmp_path / "source", tmp_path / "out") == 0
    said = (
        "not read: 1 .csv file, 1 .txt file; if they hold captions, use the source `captions` for a list, `pairs` for"
    )
    assert said in capsys.readouterr().out


def test_a_conversion_ends_with_the_next_commands(tmp_path, capsys):
    dumps.write_class_folders(tmp_path / "classes", [samples(2)])
    dumps.write_csv(tmp_path / "pairs", [samples(2)])
    assert call("folder", tmp_path / "classes", tmp_path / "of classes") == 0
    show, score = (
        shlex.split(line, comments=True) for line in capsys.readouterr().out.split("next:\n")[1].splitlines()
    )
    assert show == shlex.split(command_line("show", tmp_path / "of classes"))
    assert score[-6:] == ["--suite", "zero-shot", "--data", str(tmp_path / "of classes"), "--out", "result.json"]
    assert call("captions", tmp_path / "pairs", tmp_path / "of pairs") == 0
    _, train = (shlex.split(line, comments=True) for line in capsys.readouterr().out.split("next:\n")[1].splitlines())
    assert train[-2:] == ["--data.sources.0.folder", str(tmp_path / "of pairs")]
    assert train[-5].endswith("configs/minimal.py")


MISTAKES = [
    wrong_kind, tfrecords_as_tars, tars_as_class_folders, images_with_a_list, images_with_a_list_as_tars,
    images_with_texts, images_alone, empty_folder, no_folder, existing_destination,
    unreadable_file, unknown_column, unknown_column_of_tars,
    unknown_column_of_tfrecords, no_caption_column, cut_json, several_splits, missing_shard_of_tfds, no_driver,
    contradiction, no_limit, no_workers, no_class_names, verify_of_nothing,
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_gets_one_message_and_exit_code_2(mistake, tmp_path, capsys):
    arguments, said = mistake(tmp_path)
    assert call(*arguments) == 2
    shown = capsys.readouterr()
    (message,) = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert re.search(said, message)
    assert shown.out == ""
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_bucket_without_credentials_gets_one_message(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert call("webdataset", "s3://bucket/tars", tmp_path / "out") == 2
    assert (
        "error: the source s3://bucket/tars cannot be listed: Unable to locate credentials" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "package", "write"),
    [
        ("img2dataset", "tensorflow", dumps.write_img2dataset),
        ("tfds", "tensorflow", dumps.write_tfds),
        ("parquet", "pyarrow", dumps.write_parquet),
    ],
)
def test_a_missing_extra_is_named(kind, package, write, tmp_path, capsys, monkeypatch):
    write(tmp_path / "source", [samples(1)])
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert call(kind, tmp_path / "source", tmp_path / "out") == 2
    assert f"is read by {package}, which is not installed: pip install {package}\n" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_class_names_can_be_given(tmp_path):
    dumps.write_class_folders(tmp_path / "source", [samples(2)])
    (tmp_path / "names.txt").write_text("tench\ngoldfish\n")
    (tmp_path / "names.json").write_text(json.dumps(["tench", "goldfish"]))
    for name in ("names.txt", "names.json"):
        arguments = ["folder", tmp_path / "source", tmp_path / name[6:], "--class-names", tmp_path / name]
        assert call(*arguments) == 0
        assert open_records(tmp_path / name[6:]).manifest.class_names == ("tench", "goldfish")


def test_a_label_beyond_the_class_names_is_a_dropped_row(tmp_path):
    write_tar(
        tmp_path / "0.tar",
        [(f"{i}.{suffix}", value) for i in range(3) for suffix, value in (("jpg", dumps.jpeg(i)), ("cls", b"%d" % i))],
    )
    (tmp_path / "names.txt").write_text("tench\ngoldfish\n")
    flags = ("--label-column", "cls", "--class-names", tmp_path / "names.txt")
    assert call("webdataset", tmp_path / "0.tar", tmp_path / "out", *flags) == 0
    assert open_records(tmp_path / "out").manifest.rows_dropped == {"no class name": 1}


def test_a_source_can_be_a_file_or_a_pattern(source, tmp_path):
    assert call("webdataset", source / "00000.tar", tmp_path / "file") == 0
    assert call("webdataset", f"{source}/*1.tar", tmp_path / "pattern") == 0
    assert [len(open_records(tmp_path / name)) for name in ("file", "pattern")] == [3, 1]


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys; from conversion.records.__main__ import main\n"
        "try: main(['webdataset', '--help'])\n"
        "except SystemExit: print('loaded:', *{'jax', 'grain', 'tensorflow', 'torch', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("loaded:")
    assert "--max-side" in done.stdout
