"""The closing lines of a conversion: what a person checks at a glance, captions, classes, ignored files, examples."""

from support import dumps
from support.conversions import call, ingest, interrupted
from support.dumps import jpeg, samples, write_table

from conversion.records.unknown_words import unknown_lines


def lines(capsys):
    return capsys.readouterr().out.partition("next:\n")[0].splitlines()


def test_a_captioned_source_ends_with_its_account_captions_per_image_and_examples(tmp_path, capsys):
    texts = [["a"], ["b", "c"], [f"{'long ' * 50}"], ["d"], ["e", "f", "g", ""]]
    write_table(tmp_path / "0.parquet", {"key": list("01234"), "jpg": [jpeg(i) for i in range(5)], "caption": texts})
    assert call("parquet", tmp_path / "0.parquet", tmp_path / "out") == 0
    shown = lines(capsys)
    assert shown[1:4] == [
        "rows: 5 read, 5 written",
        "captions left out of rows that were kept: 1 empty caption",
        "captions per image: 1 to 3, 1.60 on average",
    ]
    assert shown[4] == "0.0 % of the tokens of 8 captions are unknown ([UNK]) to the packaged vocabulary"
    assert shown[5:] == ["a record: 0, 'a'", "a record: 3, 'd'", "a record: 4, 'e'"]


def test_a_labeled_source_ends_with_its_classes_and_examples_of_several(tmp_path, capsys):
    for i in range(30):
        path = tmp_path / "source" / f"class {i // 10}" / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i))
    assert call("folder", tmp_path / "source", tmp_path / "out", "--records-per-shard", 4) == 0
    assert lines(capsys)[1:] == [
        "rows: 30 read, 30 written",
        "3 classes: 0 = class 0, 1 = class 1, 2 = class 2",
        "0.0 % of the tokens of 3 class names are unknown ([UNK]) to the packaged vocabulary",
        "a record: class 0/00.jpg, label 0 (class 0)",
        "a record: class 1/19.jpg, label 1 (class 1)",
        "a record: class 2/29.jpg, label 2 (class 2)",
    ]


def test_equal_numbers_of_captions_and_single_records_are_shown_once(tmp_path, capsys):
    dumps.write_tars(tmp_path / "tars", [samples(1)])
    assert call("webdataset", tmp_path / "tars", tmp_path / "out") == 0
    assert lines(capsys)[2:] == [
        "captions per image: 1",
        "0.0 % of the tokens of 1 caption are unknown ([UNK]) to the packaged vocabulary",
        "a record: 000000000, 'caption 0'",
    ]


def test_captions_that_the_packaged_vocabulary_cannot_spell_are_shown_with_their_share_and_advice(tmp_path, capsys):
    texts = ["\N{CJK UNIFIED IDEOGRAPH-9F98} cat", "a dog"]  # one of four words is no piece
    write_table(tmp_path / "0.parquet", {"key": list("01"), "jpg": [jpeg(0), jpeg(1)], "caption": texts})
    assert call("parquet", tmp_path / "0.parquet", tmp_path / "out") == 0
    shown = lines(capsys)
    assert shown[3] == "25.0 % of the tokens of 2 captions are unknown ([UNK]) to the packaged vocabulary"
    assert shown[4].startswith("25 % of the word pieces of the captions are [UNK]: BERT's English vocabulary")
    assert "train_wordpiece" in shown[4]


def test_class_names_that_the_packaged_vocabulary_cannot_spell_are_shown_with_advice(tmp_path, capsys):
    for name in ("\N{CJK UNIFIED IDEOGRAPH-9F98}", "dog"):
        (tmp_path / "source" / name).mkdir(parents=True)
        (tmp_path / "source" / name / "0.jpg").write_bytes(jpeg(0))
    assert call("folder", tmp_path / "source", tmp_path / "out") == 0
    shown = lines(capsys)
    assert shown[3] == "50.0 % of the tokens of 2 class names are unknown ([UNK]) to the packaged vocabulary"
    assert "Class names and templates must be in a language" in shown[4]


def test_few_unknown_tokens_are_not_called_none():
    entry = {"of": "captions", "texts": 1000, "pieces": 9000, "unknown": 1}
    assert list(unknown_lines(entry)) == [
        "under 0.1 % of the tokens of 1,000 captions are unknown ([UNK]) to the packaged vocabulary"
    ]


def test_a_bounded_share_of_captions_is_sampled_from_all_over_a_part(tmp_path):
    images = [jpeg(0)] * 200
    texts = [["a dog " * 1000] * 7 if i == 0 else [f"{i}"] for i in range(200)]
    write_table(tmp_path / "0.parquet", {"key": [str(i) for i in range(200)], "jpg": images, "caption": texts})
    found = ingest(tmp_path / "0.parquet", tmp_path / "out", kind="parquet").info["unknown_pieces"]
    # The first 64 records, of the first one 5 captions of 1,000 characters each, and records 80, 96, ... 192.
    assert found == {"of": "captions", "texts": 5 + 63 + 8, "pieces": 5 * 334 + 63 + 8, "unknown": 0}


def test_long_texts_are_shortened(tmp_path, capsys):
    write_table(tmp_path / "0.parquet", {"key": ["k" * 400], "jpg": [jpeg(0)], "caption": ["word " * 200]})
    assert call("parquet", tmp_path / "0.parquet", tmp_path / "out") == 0
    (example,) = [line for line in lines(capsys) if line.startswith("a record")]
    assert len(example) < 250


def test_a_source_without_rows_ends_with_its_account(tmp_path, capsys):
    dumps.write_tars(tmp_path / "tars", [[]])
    assert call("webdataset", tmp_path / "tars", tmp_path / "out") == 0
    assert lines(capsys)[1:] == ["rows: 0 read, 0 written"]


def test_examples_do_not_depend_on_interruptions_and_workers(tmp_path, monkeypatch):
    dumps.write_tars(tmp_path / "tars", [samples(3, first=3 * i) for i in range(4)])
    whole = ingest(tmp_path / "tars", tmp_path / "whole").info
    interrupted(monkeypatch, tmp_path / "tars", tmp_path / "out", after=2)
    assert ingest(tmp_path / "tars", tmp_path / "out").info == whole
    assert ingest(tmp_path / "tars", tmp_path / "two", workers=2).info == whole
    assert [one["key"] for one in whole["records"]] == ["000000000", "000000007", "000000011"]
