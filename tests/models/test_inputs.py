"""Inputs of the wrong kind are one error that says what to write instead; compiled programs check no values."""

import re

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from support.tiny_models import tiny_clip_config

from clipa_eqx.errors import ConfigError
from clipa_eqx.evals.encode import encode_images, encode_texts
from clipa_eqx.losses.softmax import sharded_softmax_contrastive, softmax_contrastive
from clipa_eqx.models.clip import CLIP
from clipa_eqx.models.device_pixels import normalize_on_device
from clipa_eqx.sharding import MeshConfig, make_mesh

pytestmark = pytest.mark.usefixtures("no_type_checks", "quick_compile")

CONFIG = tiny_clip_config()
LENGTH, VOCAB = CONFIG.text.length, CONFIG.text.vocab
HEIGHT, WIDTH = CONFIG.image.image_size
IMAGE = np.zeros((HEIGHT, WIDTH, 3), np.float32)
TOKENS = np.zeros(LENGTH, np.int32)
VMAP_TEXT, VMAP_IMAGE = "jax.vmap(model.encode_text)(tokens)", "jax.vmap(model.encode_image)(images)"


@pytest.fixture(scope="module")
def model():
    return CLIP.init(CONFIG, key=jr.key(0))


def with_id(value):
    tokens = TOKENS.copy()
    tokens[1] = value
    return tokens


BAD_TOKENS = {
    "batch": (np.stack([TOKENS] * 3), [f"encodes one text, int[{LENGTH}], got 3 of them", VMAP_TEXT]),
    "square batch": (np.stack([TOKENS] * LENGTH), [f"got {LENGTH} of them", VMAP_TEXT]),
    "batches": (np.zeros((2, 3, LENGTH), np.int32), [f"got int32[2, 3, {LENGTH}]", VMAP_TEXT]),
    "scalar": (np.int32(3), ["got int32[]"]),
    "long": (np.zeros(LENGTH + 1, np.int32), [f"takes {LENGTH} tokens, got {LENGTH + 1}", "surgery.resize_text"]),
    "float": (TOKENS.astype(np.float32), ["token ids are float32, expected integers"]),
    "large": (with_id(VOCAB), [f"from 0 to {VOCAB}", f"rows 0 to {VOCAB - 1}", "own tokenizer"]),
    "large on the device": (jnp.asarray(with_id(VOCAB)), [f"from 0 to {VOCAB}"]),
    "negative": (with_id(-1), ["from -1 to 0"]),
}


@pytest.mark.parametrize("case", BAD_TOKENS)
def test_wrong_tokens_are_an_error_that_says_what_to_do(model, case):
    tokens, words = BAD_TOKENS[case]
    for call in (model.encode_text, model.text, model.text.trace):
        with pytest.raises(ConfigError) as caught:
            call(tokens)
        for word in words:
            assert word in str(caught.value)


BAD_IMAGES = {
    "batch": (np.stack([IMAGE] * 2), ["encodes one image", "got 2 of them", VMAP_IMAGE]),
    "channels first": (IMAGE.transpose(2, 0, 1), ["channels first", "image.transpose(1, 2, 0)"]),
    "batch, channels first": (np.stack([IMAGE.transpose(2, 0, 1)]), ["channels first", "transpose(0, 2, 3, 1)"]),
    "no channels": (IMAGE[..., 0], [f"got float32[{HEIGHT}, {WIDTH}] without channels", "preprocess"]),
    "one channel": (IMAGE[..., :1], [f"got float32[{HEIGHT}, {WIDTH}, 1]"]),
    "alpha": (np.zeros((HEIGHT, WIDTH, 4), np.float32), [f"got float32[{HEIGHT}, {WIDTH}, 4]"]),
    "levels": (IMAGE.astype(np.uint8), ["uint8", "not normalized", "preprocess", "normalize_on_device"]),
    "ints": (IMAGE.astype(np.int32), ["int32", "not normalized"]),
    "large": (np.zeros((HEIGHT * 2, WIDTH * 2, 3), np.float32), ["takes images of", "surgery.resize_image"]),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_wrong_images_are_an_error_that_says_what_to_do(model, case):
    image, words = BAD_IMAGES[case]
    for call in (model.encode_image, model.image, model.image.trace):
        with pytest.raises(ConfigError) as caught:
            call(image)
        for word in words:
            assert word in str(caught.value)


def test_the_code_in_the_messages_is_right(model):
    images, tokens = np.stack([IMAGE] * 2), np.stack([TOKENS] * 2)
    for code in (VMAP_TEXT, VMAP_IMAGE):
        assert eval(code, {"jax": jax, "model": model, "images": images, "tokens": tokens}).shape[0] == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint32])
def test_ids_of_any_integer_type_and_the_last_row_are_accepted(model, dtype):
    assert model.encode_text(with_id(VOCAB - 1 if VOCAB <= 256 else 255).astype(dtype)).shape == (CONFIG.text.embed,)


def test_compiled_programs_check_shapes_but_no_values(model):
    encode = jax.jit(lambda tokens: model.encode_text(tokens))
    assert np.isfinite(encode(with_id(VOCAB))).all()
    assert np.isfinite(jax.vmap(model.encode_text)(np.stack([with_id(VOCAB)] * 2))).all()
    plain, given = (jax.make_jaxpr(model.encode_text)(ids) for ids in (TOKENS, with_id(VOCAB)))
    assert str(plain) == str(given)
    assert "callback" not in str(plain)
    with pytest.raises(ConfigError, match=re.escape(VMAP_TEXT)):
        encode(np.stack([TOKENS] * 2))
    with pytest.raises(ConfigError, match="not normalized"):
        jax.jit(lambda image: model.encode_image(image))(IMAGE.astype(np.uint8))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, HEIGHT, WIDTH, 3), np.float32), r"float32\[2, .*expected uint8 levels"),
        (np.zeros((HEIGHT, WIDTH, 3), np.uint8), r"expected a batch, uint8\[images"),
        (np.zeros((2, 3, HEIGHT, WIDTH), np.uint8), "channels are first"),
        (np.zeros((2, 4, 4, 3), np.uint8), "surgery.resize_image"),
    ],
)
def test_scoring_refuses_wrong_images(model, images, message):
    with pytest.raises(ConfigError, match=message):
        encode_images(model, images)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (TOKENS, r"expected a batch, int\[texts"),
        (np.zeros((2, LENGTH + 1), np.int32), f"takes {LENGTH} tokens, got {LENGTH + 1}"),
        (np.stack([TOKENS, with_id(VOCAB)]), f"from 0 to {VOCAB}"),
        (np.zeros((2, LENGTH), np.float32), "expected integers"),
    ],
)
def test_scoring_refuses_wrong_tokens(model, tokens, message):
    with pytest.raises(ConfigError, match=message):
        encode_texts(model, tokens)


def test_pixels_are_not_normalized_twice():
    levels = np.zeros((2, HEIGHT, WIDTH, 3), np.uint8)
    with pytest.raises(ConfigError, match="expected uint8 levels"):
        normalize_on_device(normalize_on_device(levels))


@pytest.mark.parametrize(
    ("image", "text", "mask", "message"),
    [
        ((4, 8), (3, 8), None, r"image \(4, 8\) and text \(3, 8\)"),
        ((4, 8), (4, 6), None, r"image \(4, 8\) and text \(4, 6\)"),
        ((8,), (8,), None, r"takes embeddings \(batch, embed\)"),
        ((4, 8), (4, 8), np.ones(3, bool), r"mask is bool\[3\], expected bool\[4\]"),
        ((4, 8), (4, 8), np.ones(4, np.float32), "mask is float32"),
    ],
)
def test_the_losses_refuse_embeddings_that_are_no_pairs(image, text, mask, message):
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    arrays = jnp.ones(image), jnp.ones(text)
    options = {"log_temperature": jnp.zeros(()), "mask": None if mask is None else jnp.asarray(mask)}
    with pytest.raises(ConfigError, match=message):
        softmax_contrastive(*arrays, **options)
    with pytest.raises(ConfigError, match=message):
        sharded_softmax_contrastive(*arrays, **options, mesh=mesh, axis_names=("data", "fsdp"))
