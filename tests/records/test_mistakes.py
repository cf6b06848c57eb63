"""Frequent mistakes of users: reported early, with advice, and nothing blocks the next try."""

import contextlib
import json
import resource
import shutil

import pytest
from support import dumps
from support.conversions import call, content, error_of, ingest, interrupted, keys, write_tar
from support.dumps import jpeg, samples, write_table

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.errors import DataError


@pytest.mark.parametrize("kind", ["captions", "parquet"])
def test_a_folder_of_images_that_does_not_exist_is_reported(kind, tmp_path):
    dumps.write_csv(tmp_path / "source", [samples(1)])
    with pytest.raises(DataError, match=r"--images: there is no folder .*val2017"):
        ingest(tmp_path / "source", tmp_path / "out", kind=kind, images=str(tmp_path / "val2017"))
    assert not (tmp_path / "out").exists()


LABELED = [("0.jpg", jpeg(0)), ("0.cls", b"3"), ("1.jpg", jpeg(1)), ("1.cls", b"4")]
WITHOUT_CAPTIONS = {
    "webdataset": lambda folder: write_tar(folder / "0.tar", LABELED),
    "parquet": lambda folder: write_labeled_table(folder, samples(2)),
    "img2dataset": lambda folder: dumps.write_tfds(folder, [samples(2)]),
}


def write_labeled_table(folder, rows):
    write_table(folder / "0.parquet", {"jpg": [row.image for row in rows], "class": [3, 4]})


@pytest.mark.parametrize("kind", WITHOUT_CAPTIONS)
def test_a_source_without_captions_gets_a_message_with_advice(kind, tmp_path):
    WITHOUT_CAPTIONS[kind](tmp_path / "source")
    with pytest.raises(DataError, match=r"no column looks like the caption.*or give --label-column if.*it has: "):
        ingest(tmp_path / "source", tmp_path / "out", kind=kind)
    label = {"webdataset": "cls", "parquet": "class", "img2dataset": "label"}[kind]
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind=kind, label_column=label)
    assert manifest.rows_written == 2


def test_no_row_kept_is_an_exit_code_and_does_not_block_the_next_try(tmp_path, capsys):
    dumps.write_csv(tmp_path / "source", [samples(2)])
    shutil.move(tmp_path / "source/images", tmp_path / "images/images")
    arguments = ["captions", tmp_path / "source/list.csv", tmp_path / "out"]
    assert call(*arguments) == 1
    shown = capsys.readouterr().out
    assert "2 read, 0 written, 2 missing image" in shown
    assert "no row was kept" in shown
    assert "missing image, such as images/000000000.jpg of list.csv" in shown
    assert call(*arguments, "--images", tmp_path / "images") == 0
    assert len(open_records(tmp_path / "out")) == 2


def test_a_wrong_column_does_not_claim_the_destination(tars, tmp_path):
    with pytest.raises(DataError, match="no column 're_caption' for the caption"):
        ingest(tars, tmp_path / "out", caption_column="re_caption")
    assert ingest(tars, tmp_path / "out", caption_column="txt").rows_written == 6


@pytest.mark.parametrize("kind", ["webdataset", "img2dataset", "parquet", "captions"])
def test_a_column_to_keep_that_does_not_exist_is_reported(kind, tmp_path):
    write = {
        "webdataset": dumps.write_tars,
        "img2dataset": dumps.write_img2dataset,
        "parquet": dumps.write_parquet,
        "captions": dumps.write_jsonl,
    }[kind]
    write(tmp_path / "source", [samples(1)])
    with pytest.raises(DataError, match="'URL'"):
        ingest(tmp_path / "source", tmp_path / "out", kind=kind, keep=("URL",))


def test_members_of_tars_can_be_kept_too(tars, tmp_path):
    ingest(tars, tmp_path / "out", keep=("txt", "url"))
    assert dict(open_records(tmp_path / "out")[0].extra) == {"txt": "caption 0", "url": "http://host/000000000"}


def test_files_that_are_not_read_are_counted_for_every_kind(tmp_path):
    for kind, write in (
        ("webdataset", dumps.write_tars),
        ("parquet", dumps.write_files),
        ("captions", dumps.write_csv),
        ("folder", dumps.write_class_folders),
        ("tfds", dumps.write_tfds),
    ):
        (tmp_path / kind).mkdir()
        write(tmp_path / kind, [samples(2)])
        (tmp_path / kind / "readme.md").touch()
        manifest = ingest(tmp_path / kind, tmp_path / f"{kind}-out", kind=kind)
        assert manifest.info["ignored_files"] == {".md": 1}, kind


def test_shards_renamed_for_tfds_have_prefixes_of_their_own(tmp_path):
    dumps.write_img2dataset(tmp_path / "source", [samples(1), samples(1)])
    for i in range(2):
        (tmp_path / f"source/0000{i}.tfrecord").rename(tmp_path / f"source/laion-full.tfrecord-0000{i}-of-00002")
    ingest(tmp_path / "source", tmp_path / "out", kind="img2dataset", prefix_keys=True)
    assert keys(tmp_path / "out") == [f"laion-full.tfrecord-0000{i}-of-00002/000000000" for i in range(2)]


def test_two_data_sets_of_tfds_are_not_mixed(tmp_path):
    for name in ("a", "b"):
        dumps.write_tfds(tmp_path / "source" / name, [samples(1)])
    with pytest.raises(DataError, match="holds several data sets, give the folder of one: a/imagenet2012, b/"):
        ingest(tmp_path / "source", tmp_path / "out", kind="tfds")


def test_files_of_img2dataset_are_not_for_tfds(tmp_path):
    dumps.write_img2dataset(tmp_path / "source", [samples(1)])
    with pytest.raises(DataError, match="is it for the source `img2dataset`"):
        ingest(tmp_path / "source", tmp_path / "out", kind="tfds")


@contextlib.contextmanager
def small_disk():
    """Limit files to 1 kB, which ends a write as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_with_the_name_of_the_file_and_the_same_command_resumes(tars, tmp_path):
    ingest(tars, tmp_path / "whole")
    with (
        small_disk(),
        pytest.raises(DataError, match=r"shard-000000-000\.array_record\S* cannot be written.*disk full"),
    ):
        ingest(tars, tmp_path / "out")
    ingest(tars, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_disk_that_fails_as_keys_are_written_gets_one_message(tars, tmp_path, monkeypatch, capsys):
    from conversion.records.staging import Staging

    def full(self, name, content):
        raise OSError(28, "No space left on device", name)

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "write", full)
        assert call("webdataset", tars, tmp_path / "out") == 2
    assert "00000.tar cannot be converted into" in (message := error_of(capsys))
    assert "No space left on device: '_unfinished/part-000000.keys'" in message
    assert call("webdataset", tars, tmp_path / "out") == 0


def test_a_command_that_a_power_cut_emptied_blocks_only_converted_parts(tars, tmp_path, monkeypatch):
    interrupted(monkeypatch, tars, tmp_path / "out", after=0)
    (tmp_path / "out/_unfinished/command.json").write_text("")
    assert ingest(tars, tmp_path / "out").rows_written == 6
    interrupted(monkeypatch, tars, tmp_path / "second", after=1)
    (tmp_path / "second/_unfinished/command.json").write_text("")
    with pytest.raises(DataError, match="unfinished conversion by another command"):
        ingest(tars, tmp_path / "second")
    ingest(tars, tmp_path / "second", overwrite=True)
    assert content(tmp_path / "second") == content(tmp_path / "out")


def test_what_cannot_be_read_is_reported_by_verify(tars, tmp_path, capsys):
    ingest(tars, tmp_path / "out")
    shard = tmp_path / "out/shard-000000-000.array_record"
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    shard.unlink()
    shard.mkdir()
    manifest["shards"][0]["bytes"] = shard.stat().st_size
    (tmp_path / "out/manifest.json").write_text(json.dumps(manifest))
    assert call("verify", tmp_path / "out") == 1
    assert "damaged: shard-000000-000.array_record" in capsys.readouterr().out
    (tmp_path / "out/manifest.json").unlink()
    (tmp_path / "out/manifest.json").mkdir()
    assert call("verify", tmp_path / "out") == 2
    assert "manifest.json" in error_of(capsys)


@pytest.mark.parametrize("task", [["verify"], ["diff", "x"]])
def test_verify_and_diff_need_a_worker(task, tars, tmp_path, capsys):
    ingest(tars, tmp_path / "x")
    arguments = [task[0], *([tmp_path / "x"] * len(task)), "--workers", "0"]
    assert call(*arguments) == 2
    assert "--workers must be at least 1, got 0" in error_of(capsys)


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.jsonl"])
def test_a_list_in_utf16_is_reported(name, tmp_path):
    (tmp_path / name).write_text("filepath\ttitle\na.jpg\tb\n", encoding="utf-16")
    with pytest.raises(DataError, match=rf"{name} is encoded in UTF-16.*iconv"):
        ingest(tmp_path / name, tmp_path / "out", kind="captions")


@pytest.mark.parametrize(("error", "code"), [(OSError(5, "Input/output error"), 2), (OSError("a bug"), 1)])
def test_only_conversions_advise_to_resume_and_bugs_keep_their_traceback(
    error, code, tars, tmp_path, monkeypatch, capsys
):
    from conversion.records import __main__ as records

    def fail(*_, **__):
        raise error

    for name in ("find_damage", "convert"):
        monkeypatch.setattr(records, name, fail)
    for arguments in (["verify", tmp_path], ["webdataset", tars, tmp_path / "out"]):
        assert call(*arguments) == code
        shown = capsys.readouterr().err
        assert ("Traceback" in shown) == (code == 1)
        assert ("repeat the same command to resume" in shown) == (code == 2 and arguments[0] != "verify")


def test_a_conversion_that_kept_nothing_starts_again(tmp_path, capsys):
    dumps.write_csv(tmp_path / "source", [samples(2)])
    (tmp_path / "images").mkdir()
    arguments = ["captions", tmp_path / "source/list.csv", tmp_path / "out", "--images", tmp_path / "images"]
    assert call(*arguments) == 1
    shutil.move(tmp_path / "source/images", tmp_path / "images/images")
    assert call(*arguments) == 0
    assert len(open_records(tmp_path / "out")) == 2


def test_two_columns_of_one_name_are_reported(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(name, *columns):
        (tmp_path / "source").mkdir(exist_ok=True)
        values = {"jpg": [jpeg(0)], "caption": ["a"], "url": ["u"]}
        table = pa.Table.from_arrays([pa.array(values[column]) for column in columns], list(columns))
        pq.write_table(table, tmp_path / "source" / name)

    write("0.parquet", "jpg", "caption", "caption")
    with pytest.raises(DataError, match=r"0\.parquet has two columns named 'caption'"):
        ingest(tmp_path / "source", tmp_path / "a", kind="parquet")
    write("0.parquet", "jpg", "caption", "url", "url")  # nobody asks for these
    write("1.parquet", "jpg", "jpg", "caption")
    assert ingest(tmp_path / "source", tmp_path / "b", kind="parquet").rows_dropped == {"missing image": 1}


def test_an_empty_source_is_not_the_working_folder(tmp_path, capsys):
    for source, problem in (("", "a source or destination is empty"), ("zip://a.tar::/nowhere.zip", "No such file")):
        assert call("webdataset", source, tmp_path / "out") == 2
        assert problem in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_a_destination_with_a_name_that_is_not_utf8_is_refused_at_once(tars, tmp_path, capsys):
    out = tmp_path / "caf\udce9"
    for arguments in (["webdataset", tars, out], ["verify", out], ["diff", out, out]):
        assert call(*arguments) == 2
        assert "has a name that is not UTF-8" in error_of(capsys)
    assert not out.exists()
