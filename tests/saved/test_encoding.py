"""Embeddings of lists by a loaded model: the numbers of scoring, in chunks of one shape, on one device and on eight."""

import io
import time

import jax
import numpy as np
import pytest
from PIL import Image
from support.tiny_models import tiny_clip, tiny_tokenizer

from clipa_eqx.data.images.evaluation import EvalImageConfig, eval_image
from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.evals.encode import encode_images, encode_texts, local_rows
from clipa_eqx.saved import encoding
from clipa_eqx.saved.encoding import encode_image_list, encode_text_list
from clipa_eqx.saved.model import load_model, save_model
from clipa_eqx.sharding import MeshConfig, make_mesh

PREPROCESS = EvalImageConfig(size=(16, 16))
SIZES = [(20, 30), (16, 16), (1, 7), (400, 33), (17, 90), (64, 64), (9, 9), (31, 200), (50, 20), (16, 17), (5, 5)]
TEXTS = ["a photo of a cat", "a dog", "", "w1 w2 w3 w4 w5 w6 w7 w8 w9", "no such word", "a cat of a dog", "w3"]


def png(size, seed=0):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


FILES = [png(size, seed) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoding") / "model"
    return save_model(path, tiny_clip(), tokenizer=tiny_tokenizer(), preprocess=PREPROCESS, provenance={})


@pytest.fixture(scope="module")
def clip(folder):
    return load_model(folder)


def scored_images(clip, files, mesh=None):
    """Embeddings as scoring computes them."""
    pixels = np.stack([eval_image(file, clip.preprocess.config) for file in files])
    return local_rows(encode_images(clip.model, pixels, mesh=mesh), rows=len(files))


def test_images_have_the_numbers_of_scoring(clip):
    found = clip.encode_images(FILES, batch_size=len(FILES))
    assert (found.shape, found.dtype) == ((11, 16), np.float32)
    np.testing.assert_array_equal(found, scored_images(clip, FILES))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)


def test_texts_have_the_numbers_of_scoring(clip):
    found = clip.encode_texts(TEXTS, batch_size=len(TEXTS))
    ids = tiny_tokenizer()(TEXTS, length=8).ids
    assert (found.shape, found.dtype) == ((7, 16), np.float32)
    np.testing.assert_array_equal(found, local_rows(encode_texts(clip.model, ids), rows=len(TEXTS)))
    np.testing.assert_array_equal(clip.encode_texts([text.encode() for text in TEXTS], batch_size=len(TEXTS)), found)


def test_eight_devices_give_the_numbers_of_one(clip):
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    spread = clip.on_mesh(mesh)
    assert mesh.size == 8
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(spread.model)} == {mesh}
    for size in (3, 4, 64):
        np.testing.assert_allclose(
            spread.encode_images(FILES, batch_size=size), clip.encode_images(FILES), rtol=0, atol=1e-6
        )
        np.testing.assert_allclose(
            spread.encode_texts(TEXTS, batch_size=size), clip.encode_texts(TEXTS), rtol=0, atol=1e-6
        )
    np.testing.assert_array_equal(spread.encode_images(FILES, batch_size=11), scored_images(spread, FILES, mesh))


def test_all_forms_of_an_image_give_the_same_embedding(clip, tmp_path):
    path = tmp_path / "one.png"
    path.write_bytes(FILES[0])
    pillow = Image.open(path)
    found = clip.encode_images([FILES[0], path, str(path), pillow, np.asarray(pillow)])
    np.testing.assert_array_equal(found, np.broadcast_to(found[:1], (5, 16)))
    stacked = np.stack([np.asarray(pillow)] * 3)
    np.testing.assert_array_equal(clip.encode_images(stacked), clip.encode_images([np.asarray(pillow)] * 3))


@pytest.mark.parametrize(("count", "batch_size", "shapes"), [(11, 4, {4}), (1, 64, {1}), (5, 64, {8}), (8, 3, {3})])
def test_all_chunks_have_one_shape(clip, monkeypatch, count, batch_size, shapes):
    seen = []

    def recording(model, batch, *, mesh):
        seen.append(len(batch))
        return encode_images(model, batch, mesh=mesh)

    alone = np.concatenate([scored_images(clip, [file]) for file in FILES[:count]])
    monkeypatch.setattr(encoding, "encode_images", recording)
    np.testing.assert_allclose(clip.encode_images(FILES[:count], batch_size=batch_size), alone, rtol=0, atol=1e-6)
    assert set(seen) == shapes
    assert len(seen) == -(-count // min(batch_size, *shapes))


def test_an_empty_list_has_no_rows(clip):
    assert clip.encode_images([]).shape == clip.encode_texts([]).shape == (0, 16)


def test_texts_are_cut_as_in_training(clip, folder, tmp_path):
    long = ["a of a of a of a of a cat", "a photo of a dog of a photo of a cat"]
    assert not np.array_equal(clip.encode_texts(long), clip.encode_texts(long, reduction="syntax"))
    provenance = {"run": {"config": {"data": {"text_reduction": "syntax"}}}}
    trained = save_model(
        tmp_path / "model", tiny_clip(), tokenizer=tiny_tokenizer(), preprocess=PREPROCESS, provenance=provenance
    )
    expected = clip.encode_texts(long, reduction="syntax")
    np.testing.assert_array_equal(load_model(trained).encode_texts(long), expected)


BAD = {
    "damaged": (lambda path: FILES[0][:40], r"^image 2 of 3: .*cannot"),
    "missing": (lambda path: path / "none.jpg", r"^image 2 of 3, .*none.jpg: cannot be read \(No such file or dir"),
    "folder": (lambda path: str(path), r"^image 2 of 3, .*: cannot be read \(Is a directory\)"),
    "text file": (lambda path: path / "notes.txt", r"^image 2 of 3, .*notes.txt: "),
    "floats": (lambda path: np.zeros((4, 4, 3), np.float32), r"^image 2 of 3: got float32\(4, 4, 3\), expected bytes"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("batch_size", [1, 64])
def test_a_bad_image_is_named(clip, tmp_path, name, batch_size):
    make, words = BAD[name]
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=words):
        clip.encode_images([FILES[0], FILES[1], make(tmp_path)], batch_size=batch_size)


@pytest.mark.parametrize("entry", [None, float("nan"), 3, ["a cat"]])
def test_an_entry_that_is_no_text_is_named(clip, entry):
    with pytest.raises(DataError, match=r"^text 1 of 2 is .*, expected a string$"):
        encode_text_list(clip.model, ["a cat", entry], tokenize=lambda texts: clip.tokenizer(texts).ids, batch_size=2)


@pytest.mark.parametrize("images", ["cat.jpg", b"cat", Image.new("RGB", (4, 4)), np.zeros((4, 4, 3), np.uint8), 3])
def test_a_single_image_is_no_list(clip, images):
    with pytest.raises(DataError, match=r"^encode_images takes a list of images, got .*; put it in a list$"):
        encode_image_list(clip.model, images, prepare=clip.preprocess.pixels, batch_size=2)


def test_a_single_text_is_no_list(clip):
    with pytest.raises(DataError, match=r"^encode_texts takes a list of texts, got str; put it in a list$"):
        clip.encode_texts("a cat")


def test_a_batch_of_nothing_is_refused(clip):
    for call in (clip.encode_images, clip.encode_texts):
        with pytest.raises(ConfigError, match="batch_size is 0; it must be at least 1"):
            call([], batch_size=0)


def test_progress_is_shown_after_two_seconds(clip, capsys, monkeypatch):
    clip.encode_images(FILES)
    assert capsys.readouterr().err == ""

    def slow(image):
        time.sleep(2.1)
        return clip.preprocess.pixels(image)

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    encode_image_list(clip.model, FILES[:2], prepare=slow, batch_size=1)
    assert "2/2" in capsys.readouterr().err
