"""The contact sheet shows what training sees: the pixels of the stream, captions, and tokens as text."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import tiny_runs
from support.paths import ROOT

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.mixture import Mixture
from clipa_eqx.data.records import Record
from clipa_eqx.errors import CheckpointError, ConfigError
from clipa_eqx.programs import contact_sheet
from clipa_eqx.programs.show import main
from clipa_eqx.reports.samples import Sample, read_samples
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.training.inputs import open_sources, train_batches, train_transform


@pytest.fixture
def run(tmp_path):
    """Config, its mixture and its transform, and the same run as a file."""
    config = tiny_runs.run_config()
    tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
    path = tmp_path / "run.py"
    path.write_text("from support import tiny_runs\n\ndef config():\n    return tiny_runs.run_config()\n")
    return config, open_sources(config), train_transform(config, tokenizer), path


def test_a_sheet_holds_the_first_images_of_the_run_pixel_by_pixel(run, tmp_path):
    config, mixture, transform, _ = run
    contact_sheet.write_sheet(tmp_path / "sheet.png", mixture, transform, samples=8, seed=config.seed)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    with train_batches(config, mixture, transform.tokenizer, start_step=0) as batches:
        images = next(batches)["image"]
    gap, factor, across = contact_sheet.GAP, 192 // config.data.image.size[0], contact_sheet.columns(8)
    assert (factor, across) == (12, 4)
    for number in range(8):
        left, shown = gap + number % across * (192 + gap), images[number].repeat(factor, 0).repeat(factor, 1)
        tops = [
            top
            for top in range(gap, sheet.shape[0] - 192)
            if (number < across or top > 192) and (sheet[top : top + 192, left : left + 192] == shown).all()
        ]
        assert tops
        below = sheet[tops[0] + 192 : tops[0] + 384, left : left + 192]
        assert (below < 64).all(axis=-1).any()  # the caption is black


@pytest.mark.parametrize(
    ("size", "caption", "width", "lines"),
    [
        ((112, 112), "a cat", 224, 3),
        ((84, 84), "a cat", 168, 3),
        ((336, 336), "a cat", 256, 3),
        ((16, 8), "a cat", 128, 3),
        ((64, 64), "word " * 12, 192, 4),
        ((64, 64), "word " * 500, 192, 6),
        ((64, 64), "w" * 500, 192, 6),
    ],
)
def test_a_sheet_has_no_more_background_than_its_texts_need(size, caption, width, lines):
    """No side has a margin wider than a gap, no text goes over the side of its cell, and rows follow each other."""
    image = np.zeros((*size, 3), np.uint8)
    sample = Sample(image=image, title="key", caption=caption, tokens="a cat")
    sheet = np.asarray(contact_sheet.draw_sheet([sample] * 8)).astype(int)
    gap, side = contact_sheet.GAP, min(round(192 / max(size)) or 1, 192) * size[0]
    assert sheet.shape[1] == gap + 4 * (width + gap)
    assert sheet.shape[0] == gap + 2 * (min(side, 256) + 14 * lines + gap)
    is_used = (sheet != contact_sheet.BACKGROUND).any(axis=-1)
    for column in range(5):
        assert not is_used[:, column * (width + gap) :][:, :gap].any()
    empty = "".join("x" if row.any() else " " for row in is_used)
    assert max(map(len, empty.split("x"))) <= gap + 14


def test_captions_and_reduced_tokens_belong_to_the_images_of_the_run(run):
    config, mixture, transform, _ = run
    shown = read_samples(mixture, transform, samples=16, seed=config.seed)
    with train_batches(config, mixture, transform.tokenizer, start_step=0) as batches:
        batch = next(batches)
    assert len(shown) == 16
    for number, sample in enumerate(shown):
        record = mixture.sources[0][int(batch["sample_id"][number])]
        assert sample.title == record.key
        assert sample.caption == record.captions[0]
        assert sample.tokens == transform.tokenizer.decode(batch["tokens"][number])


def test_a_source_is_named_in_mixtures_and_its_own_class_where_there_is_no_caption(run, tmp_path):
    _, mixture, transform, _ = run
    image = mixture.sources[0][0].image

    def labeled(name, class_names):
        rows = (Record(key=f"k{i}", image=image, label=i % 2) for i in range(50))
        write_records(rows, tmp_path / name, class_names=class_names)
        return open_records(tmp_path / name)

    words = {1: {"w1 w2", "w3"}, 2: {"w4", "w5"}, 3: {"class 0", "class 1"}}
    named = (labeled("a", ("w1 w2", "w3")), labeled("b", ("w4", "w5")), labeled("c", None))
    mixed = Mixture(sources=(*mixture.sources, *named), weights=(1.0, 2.0, 2.0, 2.0))
    shown = read_samples(mixed, transform, samples=42, seed=0)
    for source, names in words.items():
        of_source = [sample for sample in shown if sample.title.endswith(f"of source {source}")]
        assert {sample.caption for sample in of_source} == names
        assert source == 3 or all(sample.tokens == sample.caption for sample in of_source)


def test_the_script_draws_configs_and_data_folders(run, tmp_path, capsys):
    config, _, _, path = run
    for target in (path, config.data.sources[0].folder):
        sheet = tmp_path / "sheets" / f"{Path(target).name}.jpg"
        main([str(target), "--sheet", str(sheet), "--samples", "7"])
        assert f"7 samples drawn to {sheet}" in capsys.readouterr().out
        with Image.open(sheet) as drawn:
            assert drawn.width > 4 * 192
    assert [file.suffix for file in (tmp_path / "sheets").iterdir()] == [".jpg", ".jpg"]


def test_a_data_folder_alone_gives_manifest_and_sheet(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = Path(run[0].data.sources[0].folder)
    for argv, name in (([], f"{folder.name}-sheet.png"), (["--sheet", "mine.webp"], "mine.webp")):
        main([str(folder), "--samples", "3", *argv])
        out = capsys.readouterr().out
        assert "rows: " in out
        assert f"3 samples drawn to {name}" in out
        with Image.open(tmp_path / name) as drawn:
            assert drawn.width == 4 * contact_sheet.GAP + 3 * 224


def test_the_script_runs_as_a_program(run, tmp_path):
    command = [sys.executable, "scripts/show.py", run[0].data.sources[0].folder, "--sheet", str(tmp_path / "a.png")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--sheet", "x.bmp"], ConfigError, "ends in .png"),
        (["--sheet", "x.png", "--samples", "0"], ConfigError, "at least 1"),
        (["--sheet", "/proc/none/x.png"], ConfigError, "cannot be written"),
    ],
)
def test_a_sheet_that_cannot_be_drawn_reports_why(run, flags, error, message):
    with pytest.raises(error, match=message):
        main([run[0].data.sources[0].folder, *flags])


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="none does not exist; expected a run folder, a model folder"):
        main([str(tmp_path / "none"), "--sheet", "x.png"])
