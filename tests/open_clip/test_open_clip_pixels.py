"""Guards image preprocessing in export and import: differences are measured and reported, unknown settings refused."""

import json
import re

import pytest
from support.open_clip_folders import CONFIG, convert, export_tiny, save

from clipa_eqx.cli import run
from conversion.open_clip.__main__ import main

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_the_difference_of_a_crop_is_reported_as_more_than_a_level(model, tmp_path, caplog):
    save(tmp_path / "model", model, resize="resize_small_crop")
    with caplog.at_level("INFO"):
        main(["export", str(tmp_path / "model"), str(tmp_path / "theirs")])
    warning = next(one.getMessage() for one in caplog.records if one.levelname == "WARNING")
    assert "open_clip has no resize_small_crop; its pixels differ: up to" in warning
    loaded = convert(tmp_path / "theirs", tmp_path / "back")
    note = next(note for note in loaded.provenance.config_notes if note.startswith("preprocess: "))
    levels = int(re.search(r"up to (\d+) of 255 levels", note)[1])
    assert levels > 10
    assert f"up to {levels} of 255" in warning
    assert "a shift of up to 1 pixel" in note
    caplog.clear()
    save(tmp_path / "square", model)
    main(["export", str(tmp_path / "square"), str(tmp_path / "squash")])
    warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert all(one.endswith("(table in docs/open_clip.md)") for one in warnings)  # of the 8 tokens, not of pixels
    note = convert(tmp_path / "squash", tmp_path / "again").provenance.config_notes[-1]
    assert "preprocess: squash by open_clip_config.json; up to 1 of 255 levels" in note


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"resize": "foo"}, "preprocess.json"), ({"mean": [0.5] * 3}, "another mean or std"), ({"size": [8, 8]}, "8, 8")],
)
def test_unsupported_image_preprocessing_is_not_exported(changes, words, model, tmp_path, capsys):
    file = save(tmp_path / "model", model) / "preprocess.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert run(lambda: main(["export", str(tmp_path / "model"), str(tmp_path / "theirs")])) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "theirs").exists()


def test_a_bare_model_config_gives_default_preprocessing_with_a_note(tmp_path):
    theirs = export_tiny(tmp_path)
    config = json.loads((theirs / CONFIG).read_text())
    (theirs / CONFIG).write_text(json.dumps(config["model_cfg"]))
    note = convert(theirs, tmp_path / "back").provenance.config_notes[-1]
    assert note.startswith("preprocess: squash, a default that no file determines")
    assert "bilinear, with ImageNet's mean and std" in note


def test_an_export_warns_that_open_clip_has_no_fast_mode(model, tmp_path, caplog):
    file = save(tmp_path / "model", model) / "preprocess.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mode": "fast"}))
    with caplog.at_level("WARNING"):
        main(["export", str(tmp_path / "model"), str(tmp_path / "theirs")])
    assert "open_clip has no squash in mode fast; its pixels differ: up to" in caplog.text
    assert "mode fast decodes JPEGs at a reduced size" in caplog.text
