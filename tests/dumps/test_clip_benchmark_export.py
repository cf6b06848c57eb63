"""Sets that CLIP_benchmark exported: each key, caption, label, image and prompt is what CLIP_benchmark itself reads."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from support.conversions import call, error_of
from support.dump_table import run_row

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.evals.labels import labels_of
from clipa_eqx.evals.prompts import class_prompts
from clipa_eqx.evals.zero_shot import ZeroShotConfig, check_set, prepare_zero_shot
from clipa_eqx.tokenizer.wordpiece import Tokenizer

WRITTEN = Path(__file__).parent / "written/clip_benchmark_export"
READ = json.loads((WRITTEN / "read.json").read_text(encoding="utf-8"))
EXACT = {"templates": "manifest", "canonicalize": False, "commas_in_names": True}


def check_samples(folder, expected):
    """Compare all records with what CLIP_benchmark reads; images without any label are not kept."""
    found = {record.key: record for record in open_records(folder)}
    assert found.keys() == {key for key, sample in expected.items() if sample.get("labels", True)}
    for key, record in found.items():
        assert hashlib.sha256(record.image).hexdigest() == expected[key]["image"]
        assert list(record.captions) == expected[key].get("captions", [])
        assert (list(labels_of(record)) if record.label is not None else None) == expected[key].get("labels")


def check_prompts(folder, read):
    """Compare the classes and the sentences that are scored with CLIP_benchmark's."""
    source = open_records(folder)
    manifest = source.manifest
    assert (list(manifest.class_names), list(manifest.templates)) == (read["classes"], read["templates"])
    assert (
        class_prompts(manifest.class_names, manifest.templates, canonical=False, commas_in_names=True)
        == read["prompts"]
    )
    config = ZeroShotConfig(data=str(folder), max_labels=3, **EXACT)
    check_set(config, source)
    task = prepare_zero_shot(
        config,
        manifest_class_names=manifest.class_names,
        manifest_templates=manifest.templates,
        tokenizer=Tokenizer.bert(),
        length=32,
    )
    assert task.class_names == tuple(read["classes"])
    assert [len(tokens) for tokens in task.tokens] == [len(read["templates"])] * len(read["classes"])
    sentences = "\n".join(prompt for prompts in read["prompts"] for prompt in prompts)
    assert task.about["prompts_sha256"] == hashlib.sha256(sentences.encode()).hexdigest()


def test_a_labeled_set_by_its_folder_and_split(tmp_path, monkeypatch, capsys):
    shutil.copytree(WRITTEN / "wds_fer2013", tmp_path / "wds_fer2013")
    row = "python -m conversion.records webdataset wds_fer2013/ data/fer2013 --split test"
    assert run_row(row, tmp_path, monkeypatch) == 0
    said = capsys.readouterr().out
    assert "7 classes: 0 = angry, 1 = disgusted" in said
    assert "6 prompt templates of the source, such as 'a photo of a {c} looking face.'" in said
    check_samples(tmp_path / "data/fer2013", READ["wds_fer2013/test"]["samples"])
    check_prompts(tmp_path / "data/fer2013", READ["wds_fer2013/test"])


def test_a_set_with_several_labels_per_image(tmp_path, monkeypatch):
    shutil.copytree(WRITTEN / "wds_voc2007_multilabel", tmp_path / "wds_voc2007_multilabel")
    row = "python -m conversion.records webdataset wds_voc2007_multilabel/ data/voc2007"
    assert run_row(row, tmp_path, monkeypatch) == 0
    read = READ["wds_voc2007_multilabel/test"]
    check_samples(tmp_path / "data/voc2007", read["samples"])
    check_prompts(tmp_path / "data/voc2007", read)
    manifest = open_records(tmp_path / "data/voc2007").manifest
    assert manifest.rows_dropped == {"missing label": sum(not one["labels"] for one in read["samples"].values())}


def test_a_retrieval_set_has_the_captions_of_an_image_as_lines(tmp_path, monkeypatch):
    shutil.copytree(WRITTEN / "wds_flickr8k", tmp_path / "wds_flickr8k")
    row = "python -m conversion.records webdataset wds_flickr8k/ data/flickr8k"
    assert run_row(row, tmp_path, monkeypatch) == 0
    check_samples(tmp_path / "data/flickr8k", READ["wds_flickr8k/test"]["samples"])
    info = open_records(tmp_path / "data/flickr8k").manifest.info
    assert (info["split"], info["dataset_type"], "captions_of_lines" in info) == ("test", "retrieval", False)


@pytest.mark.parametrize("source", ["paths", "paths/val", "paths/val/*.tar"])
def test_files_in_the_folder_above_are_found_from_everywhere(tmp_path, source):
    assert call("webdataset", WRITTEN / source, tmp_path / "out") == 0
    check_samples(tmp_path / "out", READ["paths/val"]["samples"])
    check_prompts(tmp_path / "out", READ["paths/val"])


def test_one_tar_of_a_split_has_its_class_names(tmp_path):
    assert call("webdataset", WRITTEN / "paths/val/1.tar", tmp_path / "out") == 0
    manifest = open_records(tmp_path / "out").manifest
    assert (manifest.rows_written, list(manifest.class_names)) == (5, READ["paths/val"]["classes"])


def test_lines_are_those_that_the_exporter_wrote(tmp_path):
    """CLIP_benchmark also splits captions at other separators; here a line is what the exporter wrote as one."""
    assert call("webdataset", WRITTEN / "odd_captions", tmp_path / "out") == 0
    found = {record.key: list(record.captions) for record in open_records(tmp_path / "out")}
    read = {key: sample["captions"] for key, sample in READ["odd_captions/test"]["samples"].items()}
    last = max(found)
    assert found.pop(last) == [r"two\nlines", "a separator\u2028inside", "  white space  ", "a form\x0cfeed"]
    assert read.pop(last) == [r"two\nlines", "a separator", "inside", "  white space  ", "a form", "feed"]
    assert found == read


def test_splits_are_not_mixed(tmp_path, capsys):
    assert call("webdataset", WRITTEN / "wds_fer2013", tmp_path / "out") == 2
    assert "choose one with --split: test (1 tar file), train (1 tar file)" in error_of(capsys)
    assert call("webdataset", WRITTEN / "wds_fer2013", tmp_path / "out", "--split", "val") == 2
    assert "no split 'val'; it has: test (1 tar file), train (1 tar file)" in error_of(capsys)
    assert not (tmp_path / "out").exists()
    assert call("webdataset", WRITTEN / "wds_fer2013", tmp_path / "out", "--split", "train") == 0
    check_samples(tmp_path / "out", READ["wds_fer2013/train"]["samples"])
