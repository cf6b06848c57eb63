"""Folders of embeddings: what is in them, resumes that are byte-equal, and what a resume refuses."""

import dataclasses
import errno
import json
import os
from functools import partial

import jax
import numpy as np
import pytest
from support.scored_runs import noise_png

from clipa_eqx.cli import OK, USAGE, run
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.records import Record
from clipa_eqx.errors import ConfigError, DataError, NonFiniteError
from clipa_eqx.programs.embed import main
from clipa_eqx.saved.model import load_model
from clipa_eqx.search.embedding import EmbeddingOptions, begin, embed, finish
from clipa_eqx.search.embedding_lock import locked
from clipa_eqx.search.encoder import Chunk, encode_items
from clipa_eqx.search.index import open_embeddings
from clipa_eqx.search.inputs import Item, image_folder_inputs, list_images, text_file_inputs
from clipa_eqx.search.shards import write_shard

pytestmark = pytest.mark.usefixtures("quick_compile")

OPTIONS = EmbeddingOptions(shard_inputs=3, batch_size=8)


def call(*argv):
    return run(partial(main, [str(one) for one in argv]))


def write(folder, encoder, inputs, options=OPTIONS, **places):
    with locked(folder) as lock:
        begin(folder, encoder.identity, inputs, options)
        new = embed(folder, encoder, inputs, options, fence=lock.fence, **places)
        return finish(folder, inputs, options, new=new)


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def vectors_of(folder):
    return np.concatenate([block.vectors for block in open_embeddings(folder).blocks()])


def test_images_have_the_vectors_of_the_model_in_the_order_of_their_paths(photos, encoder, model_folder, tmp_path):
    out = tmp_path / "out"
    assert call(model_folder, "--images", photos, "--out", out, "--shard-inputs", 3, "--batch-size", 8) == OK
    index = open_embeddings(out)
    names = [index.find(number).id for number in range(len(index))]
    assert names == sorted(names) == [file.name for file in list_images(photos)]
    expected = load_model(model_folder).encode_images([photos / name for name in names])
    np.testing.assert_allclose(vectors_of(out), expected, atol=1e-6)
    assert index.find(6).image() == (photos / names[6]).read_bytes()
    content = json.loads((out / "embeddings.json").read_text())
    assert [shard["rows"] for shard in content["shards"]] == [3, 3, 1]
    assert (content["rows"], content["complete"], content["width"]) == (7, True, 16)


def test_few_shards_are_open_at_once(photos, encoder, tmp_path):
    write(tmp_path / "out", encoder, image_folder_inputs(photos), EmbeddingOptions(shard_inputs=1, batch_size=8))
    before = len(os.listdir("/dev/fd"))
    index = open_embeddings(tmp_path / "out")
    assert len(os.listdir("/dev/fd")) == before
    opened = [len(os.listdir("/dev/fd")) - before for _ in index.blocks()]
    assert len(opened) == 7
    assert max(opened) <= 2
    index.rows(np.arange(7))
    assert len(os.listdir("/dev/fd")) == before


def test_the_content_of_images_is_dropped_once_they_are_encoded(encoder, tmp_path):
    dropped: list[int] = []

    class Content(bytes):
        def __del__(self):
            dropped.append(1)

    def items():
        for number in range(8):
            assert number - len(dropped) <= 3  # those on the devices and the next
            yield Item(number, str(number), Content(noise_png(number)))

    chunks = encode_items(encoder, items(), batch_size=1, is_images=True)
    listing = write_shard(tmp_path, 0, chunks, width=encoder.width, dtype="float32", is_images=True)
    assert len(listing.ids) == 8


def test_a_run_that_was_killed_in_any_shard_resumes_byte_equal(photos, encoder, tmp_path):
    inputs = image_folder_inputs(photos)
    write(tmp_path / "once", encoder, inputs)
    for kept in range(4):
        folder = tmp_path / f"killed{kept}"
        write(folder, encoder, inputs)
        for path in folder.iterdir():  # as a kill leaves it: some shards, one of them without its listing
            if path.suffix == ".json" and path.name >= f"{kept:05}" and path.name != "embeddings.json":
                path.unlink()
        begun = json.loads((folder / "embeddings.json").read_text())
        for name in ("shards", "rows", "unreadable", "truncated"):
            begun.pop(name)
        (folder / "embeddings.json").write_text(json.dumps({**begun, "complete": False}))
        with pytest.raises(ConfigError, match="is not complete; run the command"):
            open_embeddings(folder)
        assert write(folder, encoder, inputs).new == max(3 - kept, 0)
        assert content_of(folder) == content_of(tmp_path / "once")


def test_a_damaged_shard_is_written_again(photos, encoder, tmp_path):
    inputs = image_folder_inputs(photos)
    write(tmp_path / "out", encoder, inputs)
    before = content_of(tmp_path / "out")
    file = tmp_path / "out" / "00001.npy"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    assert write(tmp_path / "out", encoder, inputs).new == 1
    assert content_of(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, i, o: (e, i, dataclasses.replace(o, dtype="float16")), "options.dtype was float32, is now float16"),
        (lambda e, i, o: (e, i, dataclasses.replace(o, batch_size=4)), "options.batch_size was 8, is now 4"),
        (lambda e, i, o: (dataclasses.replace(e, weights_sha256="1" * 64), i, o), "model.weights_sha256 was"),
        (lambda e, i, o: (dataclasses.replace(e, text_reduction="syntax"), i, o), "model.text_reduction was truncate"),
        (lambda e, i, o: (e, dataclasses.replace(i, about={**i.about, "sha256": "2"}), o), "inputs.sha256 was"),
    ],
)
def test_another_model_inputs_or_options_are_refused_and_nothing_changes(photos, encoder, tmp_path, change, message):
    inputs = image_folder_inputs(photos)
    write(tmp_path / "out", encoder, inputs)
    before = content_of(tmp_path / "out")
    with pytest.raises(ConfigError, match=message):
        write(tmp_path / "out", *change(encoder, inputs, OPTIONS))
    assert content_of(tmp_path / "out") == before


def test_processes_share_the_shards_and_give_the_files_of_one(photos, encoder, tmp_path):
    inputs = image_folder_inputs(photos)
    write(tmp_path / "one", encoder, inputs)
    two = tmp_path / "two"
    with locked(two) as lock:
        begin(two, encoder.identity, inputs, OPTIONS)
        places = [{"process_index": i, "process_count": 2} for i in range(2)]
        parts = [embed(two, encoder, inputs, OPTIONS, fence=lock.fence, **place) for place in places]
        assert parts == [2, 1]
        finish(two, inputs, OPTIONS, new=3)
    assert content_of(tmp_path / "two") == content_of(tmp_path / "one")


def test_unreadable_images_are_refused_by_name_or_left_out_and_counted(photos, model_folder, tmp_path, capsys):
    (photos / "2.png").write_bytes(b"no image")
    (photos / "5.png").write_bytes(noise_png(5)[:100])
    command = (model_folder, "--images", photos, "--batch-size", 8)
    assert call(*command, "--out", tmp_path / "refused") == USAGE
    assert "input 3, 2.png: cannot decode image" in capsys.readouterr().err
    assert call(*command, "--out", tmp_path / "out", "--on-unreadable", "skip") == OK
    printed = capsys.readouterr().out
    assert "5 images in 1 shard" in printed
    assert "left out, because they cannot be read: 2 inputs\n  2.png: cannot decode" in printed
    index = open_embeddings(tmp_path / "out")
    assert [index.find(number).id for number in range(5)] == ["0.png", "1.png", "4.png", "6.png", "more/3.png"]
    whole = load_model(model_folder).encode_images([photos / "6.png"])
    np.testing.assert_allclose(vectors_of(tmp_path / "out")[3], whole[0], atol=1e-6)


def test_lines_of_a_file_are_texts_row_by_row(encoder, model_folder, tmp_path):
    texts = ["a cat", "", "a dog of a photo of a cat of a dog", "w7"]
    file = tmp_path / "texts.txt"
    file.write_bytes("\ufeff".encode() + "\r\n".join(texts).encode())
    options = EmbeddingOptions(shard_inputs=3, dtype="float16", batch_size=4)
    summary = write(tmp_path / "out", encoder, text_file_inputs(file), options)
    assert (summary.rows, summary.shards, summary.truncated) == (4, 2, 1)
    assert vectors_of(tmp_path / "out").dtype == np.float16
    np.testing.assert_allclose(vectors_of(tmp_path / "out"), load_model(model_folder).encode_texts(texts), atol=1e-3)
    assert open_embeddings(tmp_path / "out").find(3)[:2] == ("4", "w7")


def test_a_text_file_is_read_from_any_line(tmp_path):
    texts = [f"line {i}" * (i % 3) for i in range(3000)]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(texts) + "\n")
    inputs = text_file_inputs(file)
    assert inputs.count == 3000
    for numbers in (range(3), range(1023, 1027), range(2048, 2049), range(2990, 3000), range(5, 5)):
        found = [(item.number, item.id, item.content) for item in inputs.read(numbers)]
        assert found == [(number, str(number + 1), texts[number]) for number in numbers]


def test_a_line_that_is_no_text_is_refused_with_its_number(encoder, tmp_path):
    (tmp_path / "texts").write_bytes(b"a cat\na \xff dog\n")
    with pytest.raises(DataError, match="input 2, 2: not UTF-8"):
        write(tmp_path / "out", encoder, text_file_inputs(tmp_path / "texts"), EmbeddingOptions(batch_size=4))


def test_records_give_their_images_or_all_their_captions(encoder, model_folder, tmp_path):
    rows = [Record(key=f"k{i}", image=noise_png(i), captions=("a cat", "a dog")[: i % 3]) for i in range(5)]
    write_records(rows, tmp_path / "records")
    folder = tmp_path / "records"
    assert call(model_folder, "--images", folder, "--out", tmp_path / "images", "--batch-size", 8) == OK
    index = open_embeddings(tmp_path / "images")
    assert [index.find(i).id for i in range(5)] == [f"k{i}" for i in range(5)]
    assert index.find(4).image() == noise_png(4)
    assert call(model_folder, "--texts", folder, "--out", tmp_path / "texts", "--batch-size", 4) == OK
    texts = open_embeddings(tmp_path / "texts")
    assert [texts.find(i)[:2] for i in range(len(texts))] == [
        ("k1#0", "a cat"),
        ("k2#0", "a cat"),
        ("k2#1", "a dog"),
        ("k4#0", "a cat"),
    ]
    expected = load_model(model_folder).encode_texts(["a cat", "a cat", "a dog", "a cat"])
    np.testing.assert_allclose(vectors_of(tmp_path / "texts"), expected, atol=1e-6)


def test_parquet_has_the_same_rows(photos, encoder, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "out", encoder, image_folder_inputs(photos), dataclasses.replace(OPTIONS, with_parquet=True))
    table = parquet.read_table([tmp_path / "out" / f"{shard:05}.parquet" for shard in range(3)])
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), vectors_of(tmp_path / "out"))
    assert table["id"].to_pylist() == [file.name for file in list_images(photos)]


def test_a_shard_without_rows_has_the_types_of_the_others(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for shard, texts in enumerate((["a cat"], [])):
        items = [Item(number, str(number), text) for number, text in enumerate(texts)]
        chunk = Chunk(items=items, vectors=np.zeros((len(items), 4), np.float32), unreadable=[], truncated=0)
        write_shard(tmp_path, shard, [chunk], width=4, dtype="float32", is_images=False, with_parquet=True)
    schemas = [parquet.read_schema(tmp_path / f"{shard:05}.parquet") for shard in range(2)]
    assert schemas[0] == schemas[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "EMPTY", "--out", "OUT"], "has no images; expected files that end in .jpg"),
        (["--images", "NONE", "--out", "OUT"], "does not exist; give a folder with images"),
        (["--texts", "EMPTY", "--out", "OUT"], "give a UTF-8 file of lines, or a record folder"),
        (["--texts", "NONE", "--out", "OUT"], "give a UTF-8 file, one text per line"),
        (["--images", "PHOTOS", "--out", "PHOTOS"], "is not empty and has no embeddings.json"),
        (["--images", "PHOTOS", "--out", "OUT", "--batch-size", "0"], "batch_size is 0"),
        (["--images", "PHOTOS", "--out", "OUT", "--mesh", "3x1x1"], "is not 8 devices"),
        (["--images", "PHOTOS", "--out", "OUT", "--mesh", "8"], "give the sizes of data, fsdp and tensor"),
    ],
)
def test_mistakes_end_with_one_message_and_write_nothing(photos, model_folder, tmp_path, flags, message, capsys):
    (tmp_path / "empty").mkdir()
    names = {"EMPTY": "empty", "NONE": "none", "OUT": "out", "PHOTOS": "photos"}
    assert call(model_folder, *(tmp_path / names[one] if one in names else one for one in flags)) == USAGE
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("mesh", ["8x1x1", pytest.param("2x2x2", marks=pytest.mark.slow)])
def test_the_mesh_changes_vectors_by_rounding_only(photos, encoder, model_folder, tmp_path, mesh):
    out = tmp_path / "out"
    assert call(model_folder, "--images", photos, "--out", out, "--batch-size", 8, "--mesh", mesh) == OK
    single = load_model(model_folder).encode_images([photos / file.name for file in list_images(photos)])
    np.testing.assert_allclose(vectors_of(out), single, atol=2e-6)
    scores = single @ single.T
    np.testing.assert_array_equal(np.argsort(-scores), np.argsort(-(vectors_of(out) @ vectors_of(out).T)))


def test_a_full_disk_is_one_message_and_the_same_command_resumes(photos, encoder, tmp_path, monkeypatch):
    inputs = image_folder_inputs(photos)
    write(tmp_path / "once", encoder, inputs)
    real = np.save

    def full(handle, vectors):
        if len(vectors) == 1:  # the last shard
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle, vectors)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(DataError, match=r"No space left on device.; complete shards stay"):
            write(tmp_path / "out", encoder, inputs)
    assert sorted(content_of(tmp_path / "out")) == [
        *(f"0000{i}.{end}" for i in (0, 1) for end in ("json", "npy")),
        "embeddings.json",
    ]
    assert write(tmp_path / "out", encoder, inputs).new == 1
    assert content_of(tmp_path / "out") == content_of(tmp_path / "once")


def test_lines_that_cannot_be_read_any_more_are_named_and_not_the_folder(encoder, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("a photo\n" * 4)
    inputs = text_file_inputs(lines)
    lines.unlink()
    with pytest.raises(DataError, match=rf"{lines} cannot be read \(No such file or directory\); complete shards stay"):
        write(tmp_path / "out", encoder, inputs)


def test_vectors_that_are_not_finite_are_refused(photos, encoder, tmp_path):
    broken = dataclasses.replace(encoder, model=jax.tree.map(lambda leaf: leaf * np.nan, encoder.model))
    with pytest.raises(NonFiniteError, match=r"the embedding of 0\.png is not finite"):
        write(tmp_path / "out", broken, image_folder_inputs(photos))
    assert list((tmp_path / "out").glob("*.npy")) == []
