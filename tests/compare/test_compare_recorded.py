"""Guards comparisons with recorded tokens and pixels of another program: causes, and damaged recordings."""

import json

import numpy as np
import pytest
from support.comparison import LENGTH, SIZE, compared, named

from clipa_eqx.cli import run
from clipa_eqx.data.images.host_pixels import normalize_on_host
from clipa_eqx.data.images.resize import resize
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from conversion.compare import images as compare_images
from conversion.compare import texts as compare_texts
from conversion.compare.__main__ import main
from conversion.compare.inputs import FIXED_TEXTS
from conversion.compare.text_settings import ReplayTokenizer, TextSettings
from conversion.flax_clipa.names import to_flax
from conversion.open_clip.pixels import ImageSettings, fixed_images

pytestmark = pytest.mark.usefixtures("quick_compile")


def record(path, *, antialias=True, **arrays):
    pixels = [normalize_on_host(resize(p, size=SIZE, antialias=antialias)) for p in fixed_images(SIZE)]
    np.savez(path, **{f"pixels_{i}": one for i, one in enumerate(pixels)}, **arrays)


def test_antialias_is_the_cause_of_recorded_pixels(folders, tmp_path):
    record(tmp_path / "mine.npz")
    same = compared(folders / "ours", folders / "ours", tmp_path, "--recorded-b", tmp_path / "mine.npz")
    assert same["first"] is None
    record(tmp_path / "mine.npz", antialias=False)
    report = compared(folders / "ours", folders / "ours", tmp_path, "--recorded-b", tmp_path / "mine.npz")
    assert named(report) == {compare_images.ANTIALIAS}


def test_recorded_tokens_are_explained(folders, tmp_path):
    ids = Tokenizer.bert()(FIXED_TEXTS, length=LENGTH).ids
    with_sep = ids.copy()
    for row in with_sep:
        end = int(np.argmax(row == 0)) if (row == 0).any() else LENGTH - 1
        row[end] = 102
    np.savez(tmp_path / "mine.npz", tokens=with_sep)
    report = compared(folders / "ours", folders / "ours", tmp_path, "--recorded-b", tmp_path / "mine.npz")
    assert named(report) == {compare_texts.SEP_KEPT}
    np.savez(tmp_path / "mine.npz", tokens=ids + 1)
    report = compared(folders / "ours", folders / "ours", tmp_path, "--recorded-b", tmp_path / "mine.npz")
    assert named(report) == {"unexplained"}


def test_recorded_tokens_of_a_file_without_a_vocabulary_are_explained_with_the_others(model, folders, tmp_path):
    np.savez(tmp_path / "model.npz", **to_flax(model))
    ids = ReplayTokenizer(pieces=Tokenizer.bert().pieces, length=LENGTH, settings=TextSettings(sep="stripped"))(
        FIXED_TEXTS
    )
    np.savez(tmp_path / "tokens.npz", tokens=ids)
    for flag, sides in (("--recorded-b", ("ours", "npz")), ("--recorded-a", ("npz", "ours"))):
        paths = [folders / "ours" if side == "ours" else tmp_path / "model.npz" for side in sides]
        report = compared(*paths, tmp_path, flag, tmp_path / "tokens.npz")
        assert named(report) == {compare_texts.SEP_PLACE}
    flags = ("--image-pool", "gap", "--text-pool", "last", "--image-size", 16, "--recorded-a", tmp_path / "tokens.npz")
    np.savez(tmp_path / "other.npz", tokens=ids + 1)
    both = [tmp_path / "model.npz"] * 2
    report = compared(*both, tmp_path, *flags, "--recorded-b", tmp_path / "other.npz")
    assert named(report) == {"unexplained"}


def flip(data):
    return data[:400] + bytes([data[400] ^ 4]) + data[401:]


def as_npy(data):
    return b"\x93NUMPY\x01\x00" + data[8:]


@pytest.mark.parametrize("damage", [lambda data: data[:300], flip, as_npy, lambda data: b""])
def test_a_damaged_recording_is_one_clear_error(damage, folders, tmp_path, capsys):
    np.savez(tmp_path / "mine.npz", tokens=np.arange(6 * LENGTH).reshape(6, LENGTH))
    (tmp_path / "mine.npz").write_bytes(damage((tmp_path / "mine.npz").read_bytes()))
    ours = str(folders / "ours")
    assert run(lambda: main([ours, ours, "--recorded-a", str(tmp_path / "mine.npz")])) == 2
    assert f"the recording {tmp_path / 'mine.npz'}" in capsys.readouterr().err


def test_recorded_pixels_that_are_not_finite_are_refused_and_never_equal(folders, tmp_path, capsys):
    pixels = {f"pixels_{i}": np.zeros((*SIZE, 3), np.float32) for i in range(3)}
    pixels["pixels_1"][3, 4, 0] = np.nan
    np.savez(tmp_path / "mine.npz", **pixels)
    ours = str(folders / "ours")
    assert run(lambda: main([ours, ours, "--recorded-b", str(tmp_path / "mine.npz")])) == 2
    assert "pixels_1 hold non-finite values" in capsys.readouterr().err
    settings = ImageSettings(size=SIZE)

    def broken(image):
        return np.full((*SIZE, 3), np.nan, np.float32)

    found = compare_images.compare_images(broken, broken, settings_a=settings, settings_b=None)
    assert not found.is_equal
    assert found.levels == np.inf


def test_images_are_not_compared_if_the_settings_of_a_are_unknown(model, folders, tmp_path):
    np.savez(tmp_path / "model.npz", **to_flax(model))
    record(tmp_path / "mine.npz")
    report = compared(tmp_path / "model.npz", folders / "ours", tmp_path, "--recorded-a", tmp_path / "mine.npz")
    expected = f"images: not compared; the preprocessing of {tmp_path / 'model.npz'} is not recorded"
    assert expected in report["notes"]


def test_inputs_for_another_program_are_written(folders, tmp_path):
    compared(folders / "ours", folders / "ours", tmp_path, "--write-inputs", tmp_path / "inputs")
    assert json.loads((tmp_path / "inputs" / "texts.json").read_text()) == list(FIXED_TEXTS)
    assert sorted(p.name for p in (tmp_path / "inputs").glob("*.png")) == [f"image_{i}.png" for i in range(3)]
