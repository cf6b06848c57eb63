"""Fixed inputs of a comparison without a model: which side prepares them, and which recordings are refused."""

import json

import numpy as np
import pytest
from PIL import Image
from support.tiny_models import tiny_clip_config

from clipa_eqx.errors import ConversionError
from conversion.compare.inputs import FIXED_TEXTS, recorded, tower_inputs, write_inputs
from conversion.compare.replay import patches_of
from conversion.compare.side import Side
from conversion.open_clip.pixels import fixed_images
from conversion.weights.tower_options import image_options, text_options

CONFIG = tiny_clip_config(text={"vocab": 40})
SIZE, LENGTH = CONFIG.image.image_size, CONFIG.text.length
TOKENS = np.arange(6 * LENGTH).reshape(6, LENGTH) % 40
PIXELS = {f"pixels_{i}": np.full((*SIZE, 3), float(i), np.float32) for i in range(3)}


def side(config=CONFIG, **fields):
    options = {"image": image_options(config.image), "text": text_options(config.text)}
    return Side(name="x", kind="npz", config=config, read=lambda path: None, log_temperature=0.0, **options, **fields)


def tokens_of(value):
    return lambda texts: np.full((len(texts), LENGTH), value)


def test_texts_are_those_of_the_first_side_that_tokenizes():
    a, b = side(tokenize=tokens_of(1)), side(tokenize=tokens_of(2))
    assert tower_inputs(a, b, "text").tolist() == [[1.0] * LENGTH] * 3
    assert tower_inputs(side(), b, "text").tolist() == [[2.0] * LENGTH] * 3


@pytest.mark.parametrize("tokenize", [None, tokens_of(40), lambda texts: np.zeros((len(texts), LENGTH + 1), int)])
def test_without_usable_ids_the_texts_are_fixed_ids_that_both_tables_have(tokenize):
    small = side(tiny_clip_config(text={"vocab": 11}))
    for a, b in ((side(tokenize=tokenize), small), (small, side(tokenize=tokenize))):
        ids = tower_inputs(a, b, "text")
        assert ids.shape == (3, LENGTH)
        assert (ids.min() >= 0, ids.max() < 11, len(np.unique(ids)) > 5) == (True, True, True)
        np.testing.assert_array_equal(ids, tower_inputs(a, b, "text"))


def test_the_image_is_prepared_by_the_first_side_that_can():
    def prepare(value):
        return lambda image: np.full((*SIZE, 3), value, np.float32)

    one, two = (patches_of(prepare(value)(None)[None], CONFIG.image) for value in (1.0, 2.0))
    np.testing.assert_array_equal(tower_inputs(side(prepare=prepare(1.0)), side(prepare=prepare(2.0)), "image"), one)
    np.testing.assert_array_equal(tower_inputs(side(), side(prepare=prepare(2.0)), "image"), two)
    plain = tower_inputs(side(), side(), "image")
    assert plain.shape == one.shape
    assert 0.5 < np.std(plain) < 2  # normalized by ImageNet's mean and std


def test_a_recording_takes_the_place_of_what_it_holds(tmp_path):
    own = side(tokenize=tokens_of(1), prepare=lambda image: np.zeros((*SIZE, 3), np.float32))
    np.savez(tmp_path / "tokens.npz", tokens=TOKENS)
    np.savez(tmp_path / "pixels.npz", **PIXELS)
    tokens, pixels = recorded(own, tmp_path / "tokens.npz"), recorded(own, tmp_path / "pixels.npz")
    np.testing.assert_array_equal(tokens.tokenize(list(FIXED_TEXTS)), TOKENS)
    assert (tokens.prepare, pixels.tokenize) == (own.prepare, own.tokenize)
    images = fixed_images(SIZE)
    assert [pixels.prepare(image).mean() for image in reversed(images)] == [2.0, 1.0, 0.0]


REFUSED = {
    "nothing": ({}, "the recording .* cannot be converted"),
    "another array": ({"tokens": TOKENS, "ids": TOKENS}, "holds ids; expected tokens"),
    "only another array": ({"pixels": TOKENS}, "holds pixels; expected tokens"),
    "a pixel array too many": (PIXELS | {"pixels_3": PIXELS["pixels_0"]}, "holds pixels_3"),
    "too few texts": ({"tokens": TOKENS[:5]}, r"tokens are int64\(5, 8\), expected whole numbers \(6, n\)"),
    "one text": ({"tokens": TOKENS[0]}, r"tokens are int64\(8,\)"),
    "fractions": ({"tokens": TOKENS + 0.5}, r"tokens are float64\(6, 8\)"),
    "an image short": (
        {"pixels_0": PIXELS["pixels_0"]},
        r"expected pixels_0 to pixels_2, each of floats \(16, 16, 3\)",
    ),
    "another size": (PIXELS | {"pixels_1": np.zeros((16, 15, 3))}, "expected pixels_0 to pixels_2"),
    "levels": (PIXELS | {"pixels_1": np.zeros((16, 16, 3), np.uint8)}, "each of floats"),
    "infinite": (PIXELS | {"pixels_1": np.full((16, 16, 3), np.inf)}, "pixels_1 hold non-finite values"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_recording_is_refused_with_what_it_should_hold(case, tmp_path):
    arrays, words = REFUSED[case]
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(ConversionError, match=words) as caught:
        recorded(side(), tmp_path / "mine.npz")
    assert str(tmp_path / "mine.npz") in str(caught.value)


def test_the_written_files_are_exactly_the_fixed_inputs(tmp_path):
    write_inputs(tmp_path / "a" / "b", side())
    for i, image in enumerate(fixed_images(SIZE)):
        with Image.open(tmp_path / "a" / "b" / f"image_{i}.png") as found:
            np.testing.assert_array_equal(np.asarray(found), image)
    assert json.loads((tmp_path / "a" / "b" / "texts.json").read_text(encoding="utf-8")) == list(FIXED_TEXTS)
    (tmp_path / "file").touch()
    with pytest.raises(ConversionError, match="file cannot be written"):
        write_inputs(tmp_path / "file", side())


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (1, 1)])
def test_fixed_images_are_the_same_on_every_call_and_of_three_shapes(size):
    images = fixed_images(size)
    assert len({image.shape for image in images}) == 3
    assert all(np.array_equal(a, b) for a, b in zip(images, fixed_images(size), strict=True))
    (landscape, portrait, small) = (image.shape[:2] for image in images)
    assert landscape[0] > size[0]
    assert portrait[1] > size[1]
    assert small[1] == size[1]
