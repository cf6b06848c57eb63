"""Lists as people have them: what is not a list, not UTF-8, not unique or not here is named, and each row counts."""

import json
import shlex
import shutil
import subprocess

import pytest
from support import dumps
from support.conversions import call, error_of, ingest
from support.dumps import samples

from clipa_eqx.data.array_record_reader import open_records
from conversion.records.sources.captions import is_list_name
from conversion.records.sources.encodings import Encoding

NAMES = [f"{row.key}.jpg" for row in samples(3)]
COCO_IMAGES = [{"id": i, "file_name": f"images/{name}"} for i, name in enumerate(NAMES)]


@pytest.fixture
def folder(tmp_path):
    """A folder ``source`` with three images in ``images``."""
    (tmp_path / "source").mkdir()
    dumps.write_images(tmp_path / "source", [samples(3)])
    return tmp_path / "source"


def found(folder):
    return {record.key: record.captions for record in open_records(folder)}


def texts(*lines, header="image,caption"):
    return "".join(f"{line}\n" for line in (header, *lines))


def refused(capsys, folder, *flags, name=None):
    assert call("captions", folder / name if name else folder, folder.parent / "out", *flags) == 2
    assert not (folder.parent / "out").exists()
    return error_of(capsys)


@pytest.mark.parametrize(
    ("encoding", "text", "words"),
    [
        (
            "cp1252",
            "façade d'été",
            "(byte 0xe7 in line 2, the first of 3); it looks like Windows-1252, as Excel writes",
        ),
        (
            "gb18030",
            "一只狗在草地上跑",
            "(byte 0xd2 in line 2, the first of 3); convert it to UTF-8, as by `iconv -f GB18030",
        ),
        ("utf-16", "a", "is encoded in UTF-16; convert it to UTF-8, as by `iconv -f UTF-16 -t UTF-8`"),
        ("utf-16-le", "a", "is encoded in UTF-16; convert it to UTF-8, as by `iconv -f UTF-16LE -t UTF-8`"),
        ("utf-16-be", "a", "is encoded in UTF-16; convert it to UTF-8, as by `iconv -f UTF-16BE -t UTF-8`"),
    ],
)
@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.jsonl", "list.json"])
def test_a_list_in_another_encoding_is_refused_with_its_name(name, encoding, text, words, folder, capsys):
    entries = [{"image": f"images/{one}", "caption": text} for one in NAMES]
    if name.endswith("json"):
        content = json.dumps(entries, ensure_ascii=False, indent=0).replace("\n\n", "\n")
        words = words.replace("line 2", "line 4")
    elif name.endswith("jsonl"):
        content = "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries)
        words = words.replace("line 2", "line 1")
    else:
        mark = "\t" if name.endswith("tsv") else ";"
        content = texts(*(mark.join(entry.values()) for entry in entries), header=f"image{mark}caption")
    (folder / name).write_bytes(content.encode(encoding))
    if name.endswith("json") and encoding.startswith("utf-16"):  # JSON declares it
        assert call("captions", folder, folder.parent / "out") == 0
        return
    message = refused(capsys, folder)
    assert name in message
    assert words in message


def test_a_damaged_row_among_others_in_utf8_is_that_row_alone(folder):
    lines = [
        f"images/{NAMES[0]},é".encode(),
        f"images/{NAMES[1]},ok".encode(),
        *[f"images/{NAMES[2]},".encode() + b"\xe9"] * 4,
    ]
    (folder / "list.csv").write_bytes(b"\n".join([b"image,caption", *lines]))
    manifest = ingest(folder, folder.parent / "out", kind="captions")
    assert manifest.rows_dropped == {"caption is not UTF-8": 1}
    assert manifest.rows_written == 2


def test_few_lines_that_are_not_utf8_do_not_decide():
    encoding = Encoding()
    for number in (1, 2):
        encoding.note(b"\xe9\n", number)
        encoding.check("x")
    assert (encoding.broken, encoding.first) == (2, 1)


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_a_csv_file_has_any_usual_separator(mark, bom, folder):
    lines = [f"images/{name}{mark}text {i}" for i, name in enumerate(NAMES)]
    (folder / "list.csv").write_text(bom + texts(*lines, header=f"image{mark}caption"), encoding="utf-8")
    ingest(folder, folder.parent / "out", kind="captions")
    assert found(folder.parent / "out") == {f"images/{name}": (f"text {i}",) for i, name in enumerate(NAMES)}


def test_two_columns_of_one_name_are_refused_if_it_is_wanted(folder, capsys):
    line = f"images/{NAMES[0]},a,u,b,v"
    (folder / "list.csv").write_text(texts(line, header="image,caption,url,caption,url"))
    message = refused(capsys, folder)
    assert "list.csv has several columns named 'caption': columns 2 and 4; rename one in its first line" in message
    (folder / "list.csv").write_text(texts(line, header="image,caption,url,text,url"))
    assert "'url': columns 3 and 5" in refused(capsys, folder, "--keep", "url")
    assert call("captions", folder, folder.parent / "out", "--caption-column", "caption") == 0


def test_lines_with_other_cells_than_the_header_have_a_reason_and_their_number(folder):
    images = [f"images/{name}" for name in NAMES]
    quoted = f'{images[0]},"two\nlines, with a comma"'
    lines = [quoted, "", f"{images[1]},two dogs, running", f"{images[1]},right", images[2], f'{images[2]},"a" b']
    (folder / "list.csv").write_text(texts(*lines))
    manifest = ingest(folder, folder.parent / "out", kind="captions", records_per_shard=2)
    assert found(folder.parent / "out") == {images[0]: ("two\nlines, with a comma",), images[1]: ("right",)}
    assert manifest.rows_dropped == {"row cannot be parsed": 1, "wrong number of cells": 2}
    cells = [(one["key"], one["detail"]) for one in manifest.info["examples"]["wrong number of cells"]]
    assert cells == [
        ("list.csv, line 5", "line 5 has 3 instead of 2; is ',' in a text without quotes around it?"),
        ("list.csv, line 7", "line 7 has 1 instead of 2"),
    ]
    (broken,) = manifest.info["examples"]["row cannot be parsed"]
    assert broken["key"] == "list.csv, line 8"
    assert broken["detail"].endswith("is a quote in it not closed, or not doubled?")


@pytest.mark.parametrize(
    ("name", "content", "header"),
    [
        ("Train_GCC-training.tsv", "a dog\thttp://a.b/c.jpg\nb\thttp://a.b/d.jpg\n", "caption\turl"),
        ("cc12m.tsv", "https://a.b/c.jpg\ta dog\n", "url\tcaption"),
    ],
)
def test_urls_without_a_header_are_for_img2dataset(name, content, header, folder, capsys):
    (folder / name).write_text(content)
    message = refused(capsys, folder, name=name)
    assert "lists URLs of images that have not been downloaded, such as http" in message
    first, download, convert = message.split("`")[1::2]
    subprocess.run(["sh", "-c", first], cwd=folder, check=True)
    assert (folder / "with_urls.tsv").read_text() == f"{header}\n{content}"
    assert shlex.split(download) == [
        *("img2dataset", "--url_list", "with_urls.tsv", "--input_format", "tsv", "--url_col", "url"),
        *("--caption_col", "caption", "--output_format", "webdataset", "--output_folder", "downloaded"),
    ]
    assert convert == "python -m conversion.records webdataset downloaded DST"


@pytest.mark.parametrize("column", ["image", "URL"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json"])
def test_urls_in_a_column_are_for_img2dataset(suffix, column, folder, capsys):
    entries = [{column: f"https://a.b/{i}.jpg", "TEXT": "a"} for i in range(3)]
    path = folder / f"list.{suffix}"
    if suffix == "csv":
        path.write_text(texts(*(",".join(entry.values()) for entry in entries), header=f"{column},TEXT"))
    else:
        path.write_text(json.dumps(entries) if suffix == "json" else "\n".join(map(json.dumps, entries)))
    message = refused(capsys, folder)
    assert (
        f"img2dataset --url_list list.{suffix} --input_format {suffix} --url_col {column} --caption_col TEXT" in message
    )


@pytest.mark.parametrize("suffix", ["csv", "json"])
@pytest.mark.parametrize("base", ["/home/b.ob/x[1]/", "C:\\data\\x\\", "C:/data/"])
def test_paths_of_another_machine_are_refused_and_the_advice_works(base, suffix, folder, capsys):
    path = folder / f"list.{suffix}"
    inner = "images\\" if "\\" in base else "images/"
    if suffix == "csv":
        path.write_text(texts(*(f"{base}{inner}{name},a" for name in NAMES)))
    else:
        path.write_text(json.dumps([{"image": f"{base}{inner}{name}", "caption": "a"} for name in NAMES], indent=0))
    message = refused(capsys, folder, "--images", folder, name=path.name)
    assert f"holds absolute paths of another machine: there is no folder {base}{inner} here" in message
    (command,) = message.split("`")[1::2]
    subprocess.run(["sh", "-c", command], cwd=folder, check=True)
    assert call("captions", folder / f"relative.{suffix}", folder.parent / "out", "--images", folder / "images") == 0
    assert found(folder.parent / "out") == dict.fromkeys(NAMES, ("a",))


@pytest.mark.parametrize("form", ["csv", "json"])
@pytest.mark.parametrize("flag", [False, True])
def test_an_image_under_several_spellings_is_one_row(flag, form, folder):
    paths = [f"images/{NAMES[0]}", f"./images/{NAMES[0]}", f"images//{NAMES[0]}", f"images\\{NAMES[0]}"]
    entries = [{"image": path, "caption": str(i)} for i, path in enumerate(paths)]
    if form == "csv":
        (folder / "list.csv").write_text(texts(*(",".join(entry.values()) for entry in entries)))
    else:
        (folder / "list.json").write_text(json.dumps(entries))
    options = {"images": str(folder)} if flag else {}
    manifest = ingest(folder / f"list.{form}", folder.parent / "out", kind="captions", **options)
    assert found(folder.parent / "out") == {paths[0]: ("0", "1", "2", "3")}
    assert (manifest.rows_read, manifest.rows_dropped) == (1, {})


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_file_is_found_under_the_spelling_of_windows_a_url_or_another_case(form, folder):
    shutil.move(folder / "images" / NAMES[2], folder / "images/two words, 100%.JPG")
    shutil.move(folder / "images" / NAMES[1], folder / "images/%41.jpg")
    paths = [f"images\\{NAMES[0]}", "images/%41.jpg", "images/two%20words%2C%20100%25.jpg"]
    if form == "csv":
        (folder / "list.csv").write_text(texts(*(f"{path},a" for path in paths)))
    else:
        (folder / "list.json").write_text(json.dumps([{"image": path, "caption": "a"} for path in paths]))
    manifest = ingest(folder, folder.parent / "out", kind="captions")
    assert manifest.rows_dropped == {}
    assert {record.key: record.image for record in open_records(folder.parent / "out")} == {
        path: row.image for path, row in zip(paths, samples(3), strict=True)
    }


def test_the_first_missing_image_is_named_if_they_are_many(folder, capsys):
    lines = [f"images/{name},a" for name in (NAMES[0], "x.jpg", "y.jpg", *NAMES[1:])]
    (folder / "list.csv").write_text(texts(*lines))
    assert call("captions", folder, folder.parent / "out") == 0
    shown = capsys.readouterr().out
    assert "2 images are missing, the first is images/x.jpg (no such file); is --images the folder that all" in shown
    for i in range(9):
        shutil.copyfile(folder / "images" / NAMES[0], folder / f"images/{i}.jpg")
    (folder / "list.csv").write_text(texts("images/x.jpg,a", *(f"images/{i}.jpg,a" for i in range(9))))
    assert call("captions", folder, folder.parent / "second") == 0
    assert "10 read, 9 written, 1 missing image" in (shown := capsys.readouterr().out)
    assert "images are missing" not in shown


@pytest.mark.parametrize("form", ["csv", "jsonl", "json"])
def test_images_that_no_list_names_are_counted(form, folder, capsys):
    shutil.move(folder / "images" / NAMES[0], folder / "images/a b.JPG")
    entries = [{"image": path, "caption": "a"} for path in ("images/a%20b.jpg", f".\\images\\{NAMES[1]}")]
    if form == "csv":
        (folder / "list.csv").write_text(texts(*(",".join(entry.values()) for entry in entries)))
    else:
        lines = json.dumps(entries) if form == "json" else "\n".join(map(json.dumps, entries))
        (folder / f"list.{form}").write_text(lines)
    assert call("captions", folder, folder.parent / "out") == 0
    assert "images of the source that no list names: 1" in capsys.readouterr().out
    (folder / "images" / NAMES[2]).unlink()
    manifest = ingest(folder, folder.parent / "second", kind="captions")
    assert (manifest.rows_written, "images_in_no_list" in manifest.info) == (2, False)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.txt", texts(*(f"images/{name},a" for name in NAMES))),
        ("captions.txt", texts(*(f"images/{name}\ta" for name in NAMES), header="image\tcaption")),
        ("Flickr8k.token.txt", "".join(f"images/{name}#0\ta\n" for name in NAMES)),
        ("results.token", "\ufeff" + "".join(f"images/{name}#0\ta\n" for name in NAMES)),
        ("tokens.tsv", "".join(f"images/{name}#0\ta\n" for name in NAMES)),
    ],
)
def test_a_text_that_begins_as_a_list_is_one(name, content, folder):
    (folder / name).write_text(content, encoding="utf-8")
    (folder / "readme.txt").write_text("about these images, and their captions\n")
    (folder / "ExpertAnnotations.txt").write_text(f"{NAMES[0]}\t{NAMES[1]}#2\t1\t1\t1\n")
    manifest = ingest(folder, folder.parent / "out", kind="captions")
    assert found(folder.parent / "out") == {f"images/{one}": ("a",) for one in NAMES}
    assert manifest.info["ignored_files"] == {".txt": 2}


def test_a_numbered_line_keeps_tabs_of_its_text_and_needs_one(folder):
    (folder / "list.token").write_text(f"images/{NAMES[0]}#0\ta\tb\nimages/{NAMES[1]} a\n\nimages/{NAMES[2]}#12\tc\n")
    manifest = ingest(folder, folder.parent / "out", kind="captions")
    assert found(folder.parent / "out") == {f"images/{NAMES[0]}": ("a\tb",), f"images/{NAMES[2]}": ("c",)}
    assert manifest.info["examples"] == {
        "row cannot be parsed": [
            {
                "key": "list.token, line 2",
                "source": "list.token, byte 0 on",
                "detail": "no tab between image and caption",
            }
        ]
    }


def test_texts_are_no_lists_next_to_images_or_to_another_list(folder, capsys):
    for name in NAMES:
        (folder / "images" / name.replace(".jpg", ".txt")).write_text("image,caption\n")
    assert "is it for the source `pairs`?" in refused(capsys, folder)
    (folder / "captions.txt").write_text(texts(f"images/{NAMES[0]},of the text"))
    (folder / "list.csv").write_text(texts(f"images/{NAMES[0]},of the table"))
    manifest = ingest(folder, folder.parent / "out", kind="captions")
    assert found(folder.parent / "out") == {f"images/{NAMES[0]}": ("of the table",)}
    assert manifest.info["ignored_files"] == {".txt": 4}


def test_a_text_that_is_no_list_is_refused_with_advice(folder, capsys):
    (folder / "notes.txt").write_text("a photo of a dog\n")
    message = refused(capsys, folder, name="notes.txt")
    assert "notes.txt is no list of images and captions: its first line has neither columns" in message
    assert "to the source `pairs`" in message
    (folder / "notes.txt").write_text("photo;words\n")
    assert "no column looks like the image" in refused(capsys, folder, name="notes.txt")
    assert "it holds 3 .jpg, 1 .txt files" in refused(capsys, folder)


def test_other_sources_advise_captions_for_a_text_that_is_named_like_a_list(folder, capsys):
    (folder / "captions.txt").write_text(texts(*(f"images/{name},a" for name in NAMES)))
    assert call("webdataset", folder, folder.parent / "out") == 2
    assert "is it for the source `captions`?" in error_of(capsys)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("a/captions.txt", True),
        ("x.token", True),
        ("flickr8k.token.txt", True),
        ("readme.txt", False),
        ("a.csv", True),
    ],
)
def test_names_of_lists(name, is_one):
    assert is_list_name(name) is is_one


def test_objects_of_coco_and_conversations_are_no_captions(folder, capsys):
    notes = [{"id": 1, "image_id": 0, "category_id": 18, "bbox": [1, 2, 3, 4], "area": 12.0, "iscrowd": 0}]
    (folder / "instances.json").write_text(json.dumps({"images": COCO_IMAGES, "annotations": notes, "categories": []}))
    message = refused(capsys, folder)
    assert "holds COCO's objects, not captions (its annotations have: id, image_id, category_id, bbox" in message
    turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "a dog"}]
    (folder / "instances.json").write_text(
        json.dumps([{"id": name, "image": f"images/{name}", "conversations": turns} for name in NAMES])
    )
    assert "it has: id, image, conversations" in refused(capsys, folder)
    message = refused(capsys, folder, "--caption-column", "conversations")
    assert "column 'conversations' holds lists of maps, expected texts" in message


def test_a_list_inside_a_map_under_data_is_a_list(folder):
    entries = [
        {"image_id": str(i), "image_path": f"images/{name}", "caption_id": k, "caption_str": f"{i}.{k}"}
        for k in range(2)
        for i, name in enumerate(NAMES)
    ]
    (folder / "TextCaps_0.1_train.json").write_text(json.dumps({"dataset_type": "train", "data": entries}))
    ingest(folder, folder.parent / "out", kind="captions")
    assert found(folder.parent / "out") == {f"images/{name}": (f"{i}.0", f"{i}.1") for i, name in enumerate(NAMES)}
