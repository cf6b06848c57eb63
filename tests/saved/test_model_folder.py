"""Model folders: what comes back equal, what is refused, what is replaced, and what damage is reported."""

import dataclasses
import hashlib
import io
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from support.leaves import edit_safetensors
from support.tiny_models import tiny_clip, tiny_tokenizer

from clipa_eqx.data.images.evaluation import EvalImageConfig, eval_image
from clipa_eqx.data.images.host_pixels import normalize_on_host
from clipa_eqx.errors import CheckpointError, ConfigError, DataError
from clipa_eqx.saved.model import load_model, save_model
from clipa_eqx.saved.model_folder import open_model_folder
from clipa_eqx.saved.provenance import Provenance, Source

PREPROCESS = EvalImageConfig(size=(16, 16), resize="squash")
IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def save(folder, model=None, **fields):
    chosen = {"tokenizer": tiny_tokenizer(), "preprocess": PREPROCESS, "provenance": {"source": "test"}}
    return save_model(folder, tiny_clip() if model is None else model, **(chosen | fields))


@pytest.fixture
def saved(tmp_path):
    return save(tmp_path / "model")


def span(file, path):
    """The bytes of a leaf in a safetensors file."""
    with file.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        first, last = json.loads(raw.read(length))[path]["data_offsets"]
    return range(8 + length + first, 8 + length + last)


def hashes(folder):
    """SHA-256 of the bytes of each leaf, read by the safetensors library."""
    leaves = load_file(folder / "model.safetensors")
    return {path: hashlib.sha256(values.tobytes()).hexdigest() for path, values in leaves.items()}


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(IMAGE).save(file, "PNG")
    return file.getvalue()


def edit_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_everything_comes_back_equal(saved):
    clip, model = load_model(saved), tiny_clip()
    assert eqx.tree_equal(clip.model, model)
    assert clip.tokenizer.tokenizer.pieces == tiny_tokenizer().pieces
    assert clip.preprocess.config == PREPROCESS
    assert clip.provenance == Provenance(source=Source(name="test"), leaves_sha256=hashes(saved))


def test_an_opened_folder_has_all_parts_and_the_paths_of_its_files(saved):
    opened = open_model_folder(saved)
    assert (opened.path, opened.weights, opened.optimizer) == (saved, saved / "model.safetensors", None)
    assert (opened.config, opened.preprocess) == (tiny_clip().config, PREPROCESS)
    assert opened.tokenizer.pieces == tiny_tokenizer().pieces
    assert opened.provenance == Provenance(source=Source(name="test"), leaves_sha256=hashes(saved))
    for name in ("optimiser.safetensors", "optimizer.safetensors"):  # the former name, then the current one
        (saved / name).touch()
        assert opened.optimizer == saved / name


def test_provenance_can_be_given_as_it_is_typed(tmp_path):
    provenance = Provenance(source=Source(name="x"), steps=3, extra={"by": "me"})
    loaded = load_model(save(tmp_path / "model", provenance=provenance)).provenance
    assert loaded == dataclasses.replace(provenance, leaves_sha256=hashes(tmp_path / "model"))
    # Hashes that came with a model are of its former leaves.
    again = dataclasses.replace(loaded, leaves_sha256={"optimizer.safetensors/updates": "0", "log_temperature": "0"})
    assert load_model(save(tmp_path / "again", provenance=again)).provenance == loaded


def test_the_folder_holds_the_named_files_and_float32_leaves_by_path(saved):
    names = {path.name for path in saved.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer", "preprocess.json", "provenance.json"}
    weights = load_file(saved / "model.safetensors")
    assert weights["image/blocks/attn/q/weight"].shape == (2, 32, 32)
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    assert json.loads((saved / "preprocess.json").read_text())["mean"] == [0.485, 0.456, 0.406]
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_texts_and_images_go_straight_into_the_towers(saved):
    clip = load_model(saved)
    tokens = clip.tokenizer(["a photo of a cat", "a photo of a photo of a dog"])
    assert tokens.ids.shape == (2, 8)
    assert tokens.truncated == 1
    assert jax.vmap(clip.model.encode_text)(tokens.ids).shape == (2, 16)
    images = clip.preprocess([IMAGE])
    assert jax.vmap(clip.model.encode_image)(images).shape == (1, 16)


def test_bytes_pillow_images_and_arrays_give_the_same_normalized_pixels(saved):
    preprocess = load_model(saved).preprocess
    batch = preprocess([png(), Image.fromarray(IMAGE), IMAGE])
    expected = normalize_on_host(eval_image(png(), PREPROCESS))
    assert batch.dtype == np.float32
    for image in batch:
        np.testing.assert_array_equal(image, expected)


def test_alpha_is_dropped_and_gray_repeated(saved):
    preprocess = load_model(saved).preprocess
    transparent = Image.fromarray(np.dstack([IMAGE, np.zeros((20, 30), np.uint8)]))
    np.testing.assert_array_equal(preprocess([transparent]), preprocess([IMAGE]))
    gray = preprocess([Image.fromarray(IMAGE[..., 0])])
    np.testing.assert_array_equal(gray, preprocess([np.repeat(IMAGE[..., :1], 3, axis=2)]))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([IMAGE, IMAGE.astype(np.float32)], r"image 1 of 2: got float32\(20, 30, 3\)"),
        ([IMAGE[..., 0]], r"got uint8\(20, 30\)"),
        ([b"no image"], "image 0 of 1"),
        ([Image.fromarray(IMAGE[..., 0].astype(np.int32))], "mode I"),
    ],
)
def test_an_entry_that_is_not_an_image_is_refused_by_place(saved, images, words):
    with pytest.raises(DataError, match=words):
        load_model(saved).preprocess(images)


def test_an_existing_folder_is_replaced_only_if_asked(saved):
    with pytest.raises(CheckpointError, match="exists already"):
        save(saved, tiny_clip(1))
    assert eqx.tree_equal(load_model(saved).model, tiny_clip())
    save(saved, tiny_clip(1), overwrite=True)
    assert eqx.tree_equal(load_model(saved).model, tiny_clip(1))
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not a model folder"):
        save(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_failing_save_leaves_the_old_model_and_no_trace(saved):
    with pytest.raises(TypeError):
        save(saved, tiny_clip(1), provenance={"not JSON": object()}, overwrite=True)
    assert eqx.tree_equal(load_model(saved).model, tiny_clip())
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_model_that_is_not_finite_is_not_saved(tmp_path):
    model = eqx.tree_at(lambda m: m.image.class_token, tiny_clip(), jnp.full(32, jnp.nan))
    with pytest.raises(CheckpointError, match="not finite: image/class_token"):
        save(tmp_path / "model", model)
    assert list(tmp_path.iterdir()) == []


def test_parts_that_do_not_fit_are_not_saved(tmp_path):
    with pytest.raises(ConfigError, match=r"preprocess.size is \(8, 8\)"):
        save(tmp_path / "model", preprocess=EvalImageConfig(size=(8, 8)))
    with pytest.raises(ConfigError, match="64 pieces, the model's token table 9 rows"):
        save(tmp_path / "model", tiny_clip(text={"vocab": 9}))


def test_all_wrong_leaves_are_listed_at_once(saved):
    def spoil(weights):
        weights["image/head"] = weights.pop("image/head/weight")
        weights["text/position"] = weights["text/position"][:5]
        weights["text/norm/bias"] = np.full_like(weights["text/norm/bias"], np.inf)

    edit_safetensors(saved / "model.safetensors", spoil)
    with pytest.raises(CheckpointError) as caught:
        load_model(saved)
    for words in (
        "4 problems",
        "missing: image/head/weight (16, 32)",
        "unused: image/head (16, 32)",
        "shape: text/position is (5, 32), expected (8, 32)",
        "not finite: text/norm/bias",
    ):
        assert words in str(caught.value)


def test_other_dtypes_are_refused(saved):
    edit_safetensors(
        saved / "model.safetensors",
        lambda weights: weights.update(log_temperature=weights["log_temperature"].astype(np.float16)),
    )
    with pytest.raises(CheckpointError, match=r"log_temperature.*F16"):
        load_model(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocess.json", "provenance.json"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_model(saved)


def test_a_missing_folder_or_tokenizer_is_named(saved):
    with pytest.raises(CheckpointError, match="nothing does not exist; expected a model folder"):
        load_model(saved / "nothing")
    (saved / "tokenizer" / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"vocab.txt"):
        load_model(saved)


@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_an_error_that_names_leaf_and_folder(saved, bit):
    file, path = saved / "model.safetensors", "text/blocks/mlp/fc_in/weight"
    at = span(file, path)
    data = bytearray(file.read_bytes())
    data[at.start + 4 * 77 + 1] ^= 1 << bit
    file.write_bytes(data)
    words = rf"model folder {saved}: model.safetensors: .*1 problem:\n  sha256 of {path} is not the recorded one"
    with pytest.raises(CheckpointError, match=words):
        load_model(saved)
    assert not eqx.tree_equal(load_model(saved, verify=False).model, tiny_clip())


def test_a_folder_without_hashes_is_loaded_and_a_damaged_record_of_them_is_not(saved):
    provenance = saved / "provenance.json"
    edit_json(provenance, leaves_sha256=[1])
    with pytest.raises(CheckpointError, match=rf"{saved}: the recorded checksums are list"):
        load_model(saved)
    edit_json(provenance, leaves_sha256={"log_temperature": hashes(saved)["log_temperature"]})
    with pytest.raises(CheckpointError, match=r"no checksum is recorded for image/patch/weight; every leaf needs one"):
        load_model(saved)
    found = json.loads(provenance.read_text())
    del found["leaves_sha256"]
    provenance.write_text(json.dumps(found))  # as version 0.1.0 wrote it
    assert eqx.tree_equal(load_model(saved).model, tiny_clip())


def test_truncated_weights_are_an_error(saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        load_model(saved)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_config_is_an_error(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json"):
        load_model(saved)


def test_later_schemas_and_other_pixel_values_are_refused(saved):
    edit_json(saved / "preprocess.json", mean=[0.5, 0.5, 0.5])
    with pytest.raises(CheckpointError, match="another mean or std"):
        load_model(saved)
    edit_json(saved / "config.json", schema=2)
    with pytest.raises(CheckpointError, match="schema 2, this version of clipa_eqx reads 1"):
        load_model(saved)


def test_the_parts_are_frozen(saved):
    clip = load_model(saved)
    with pytest.raises(dataclasses.FrozenInstanceError):
        clip.tokenizer.length = 3
