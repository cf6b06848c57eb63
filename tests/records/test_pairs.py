"""Images with texts of the same name next to them, the commonest layout made by hand."""

import json

import pytest
from support import dumps
from support.conversions import call, content, error_of, ingest
from support.dumps import jpeg

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.errors import DataError

FILES = {
    "a/1.jpg": jpeg(1),
    "a/1.txt": b"one\n",
    "a/b/1.JPEG": jpeg(2),
    "a/b/1.TXT": b"first\r\n\r\nsecond\n",
    "photo.of.2024.png": dumps.odd_images()["rgba.png"],
    "photo.of.2024.txt": b"two",
    "photo.of.2023.webp": jpeg(3),
    "photo.of.2023.txt": b"three",
}


def write(folder, files):
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(value)
    return folder


def found(folder):
    return {record.key: record.captions for record in open_records(folder)}


def test_images_have_the_lines_of_their_texts_as_captions(tmp_path, capsys):
    write(tmp_path / "source", FILES)
    assert call("pairs", tmp_path / "source", tmp_path / "out") == 0
    assert found(tmp_path / "out") == {
        "a/1": ("one",),
        "a/b/1": ("first", "second"),
        "photo.of.2023": ("three",),
        "photo.of.2024": ("two",),
    }
    assert [record.image for record in open_records(tmp_path / "out")][:2] == [jpeg(1), jpeg(2)]
    assert "rows: 4 read, 4 written\n" in capsys.readouterr().out


def test_what_has_no_partner_or_no_text_is_a_dropped_row(tmp_path):
    lonely = {
        "x.jpg": jpeg(5),
        "y.txt": b"no image",
        "z.jpg": jpeg(6),
        "z.txt": b" \n",
        "cafe.jpg": jpeg(7),
        "cafe.txt": b"caf\xe9",
    }
    write(tmp_path / "source", {**FILES, **lonely, "notes.md": b"", "._1.txt": b"of a Mac"})
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="pairs")
    assert (manifest.rows_read, manifest.rows_written) == (8, 4)
    assert manifest.rows_dropped == {
        "caption is not UTF-8": 1, "empty caption": 1, "missing caption": 1, "missing image": 1
    }  # fmt: skip
    assert (manifest.info["ignored_files"], manifest.info["hidden_files"]) == ({".md": 1}, 1)


def test_a_second_image_or_text_of_one_name_is_counted_and_other_formats_are_kept(tmp_path, capsys):
    files = {**FILES, "a/1.png": dumps.odd_images()["rgba.png"], "a/1.JPG": jpeg(8), "a/b/1.txt": b"again"}
    write(tmp_path / "source", files)
    assert call("pairs", tmp_path / "source", tmp_path / "out") == 0
    manifest = open_records(tmp_path / "out").manifest
    assert manifest.rows_dropped == {"duplicate key of another sample": 2, "missing image": 1}
    assert (manifest.rows_read, set(found(tmp_path / "out"))) == (
        7,
        {"a/1", "a/b/1", "photo.of.2023", "photo.of.2024"},
    )
    assert "is an image in several lists or file formats" in capsys.readouterr().out


def test_a_chosen_suffix_takes_these_images_alone(tmp_path):
    png = dumps.odd_images()["rgba.png"]
    write(tmp_path / "source", {"1.jpg": jpeg(1), "1.png": png, "1.txt": b"one"})
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="pairs", image_column="png")
    assert [record.image for record in open_records(tmp_path / "out")] == [png]
    assert (manifest.rows_read, manifest.rows_dropped) == (1, {})


def test_json_next_to_images_gives_captions_labels_keys_and_values(tmp_path):
    for i in range(3):
        about = {"caption": [f"{i}", float("nan")], "class": "cat" if i else "dog", "uid": 10 + i, "url": f"u{i}"}
        write(tmp_path / "source", {f"{i}.jpg": jpeg(i), f"{i}.json": json.dumps(about).encode()})
    options = {"kind": "pairs", "label_column": "class", "key_column": "uid", "keep": ("url",), "records_per_shard": 2}
    manifest = ingest(tmp_path / "source", tmp_path / "out", **options)
    assert manifest.class_names == ("cat", "dog")
    assert [(one.key, one.label, one.captions, dict(one.extra)) for one in open_records(tmp_path / "out")] == [
        ("10", 1, ("0",), {"url": "u0"}), ("11", 0, ("1",), {"url": "u1"}), ("12", 0, ("2",), {"url": "u2"})
    ]  # fmt: skip
    ingest(tmp_path / "source", tmp_path / "two", workers=2, **options)
    assert content(tmp_path / "two") == content(tmp_path / "out")


def test_a_changed_text_of_another_size_is_a_changed_source(tmp_path):
    write(tmp_path / "source", FILES)
    ingest(tmp_path / "source", tmp_path / "out", kind="pairs")
    (tmp_path / "source/a/1.txt").write_text("longer")
    with pytest.raises(DataError, match="the source has changed"):
        ingest(tmp_path / "source", tmp_path / "out", kind="pairs")


def test_images_without_texts_and_texts_without_images_are_refused(tmp_path, capsys):
    write(tmp_path / "images", {"cat/1.jpg": jpeg(1), "2.jpg": jpeg(2)})
    assert call("pairs", tmp_path / "images", tmp_path / "out") == 2
    assert "no images with .txt or .json files of the same names" in (message := error_of(capsys))
    assert "is it for the source `folder`?" in message
    write(tmp_path / "texts", {"a.txt": b"a"})
    assert call("pairs", tmp_path / "texts", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "captions", "folder"])
def test_other_sources_name_this_one_for_such_a_folder(kind, tmp_path, capsys):
    write(tmp_path / "source", {name: value for name, value in FILES.items() if "/" not in name})
    assert call(kind, tmp_path / "source", tmp_path / "out") == 2
    assert "is it for the source `pairs`?" in error_of(capsys)


def test_texts_in_class_folders_are_counted_with_a_hint(tmp_path, capsys):
    write(tmp_path / "source", {"cat/1.jpg": jpeg(1), "cat/1.txt": b"a", "dog/2.jpg": jpeg(2), "dog/x.md": b""})
    assert call("folder", tmp_path / "source", tmp_path / "out") == 0
    assert (
        "not read: 1 .md file, 1 .txt file; if they hold captions, use the source `captions` for a list, `pairs` for"
        in capsys.readouterr().out
    )


def test_a_folder_without_files_gives_an_empty_record_folder_or_one_message(tmp_path, capsys):
    (tmp_path / "source").mkdir()
    assert call("pairs", tmp_path / "source", tmp_path / "out") == 2
    assert "holds no files" in error_of(capsys)
