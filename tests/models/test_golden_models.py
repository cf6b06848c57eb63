"""Both towers equal the recorded reference: outputs, intermediate values, gradients, masking, shapes, initializers."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from support import goldens
from support.reference_models import clip_config

from clipa_eqx.models.clip import CLIP, abstract_clip
from clipa_eqx.models.embed import keep_random_tokens, kept_tokens, sincos_1d, sincos_2d
from clipa_eqx.models.presets import VARIANTS, Size, from_variant
from clipa_eqx.trees import count_params
from conversion.flax_clipa.names import flax_rules, from_flax, to_flax

goldens.require("models")
INDEX = goldens.load_json("models/index.json")


@functools.cache
def load(case):
    io = goldens.load_npz(f"models/{case}/io.npz")
    config = clip_config(INDEX[case]["model"], image_size=io["image"].shape[1:3], length=io["text"].shape[1])
    return from_flax(goldens.under(goldens.load_npz(f"models/{case}/params.npz"), "params/"), config), io


@pytest.mark.parametrize("case", INDEX)
def test_embeddings_equal_the_reference(case):
    model, io = load(case)
    images, texts = jnp.asarray(io["image"]), jnp.asarray(io["text"])
    for name in ("zimg", "image_only/zimg"):
        np.testing.assert_allclose(jax.jit(jax.vmap(model.encode_image))(images), io[name], rtol=0, atol=1e-5)
    for name in ("ztxt", "text_only/ztxt"):
        np.testing.assert_allclose(jax.jit(jax.vmap(model.encode_text))(texts), io[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", INDEX)
def test_every_intermediate_equals_the_reference(case):
    model, io = load(case)
    image = jax.jit(jax.vmap(model.image.trace))(jnp.asarray(io["image"]))
    text = jax.jit(jax.vmap(model.text.trace))(jnp.asarray(io["text"]))
    ours = {
        "img/stem": image.stem,
        "img/with_posemb": image.with_position,
        "img/encoded": image.blocks.after_mlp[:, -1],
        "img/head_input": image.head_input,
        "img/logits": image.embedding,
        "img/norm": jnp.linalg.norm(image.embedding, axis=1),
        "img/normalized": jax.jit(jax.vmap(model.encode_image))(jnp.asarray(io["image"])),
        "txt/embedded": text.vectors,
        "txt/head_input": text.head_input,
        "txt/logits": text.embedding,
        "txt/norm": jnp.linalg.norm(text.embedding, axis=1),
        "txt/normalized": jax.jit(jax.vmap(model.encode_text))(jnp.asarray(io["text"])),
        "t": jnp.exp(model.log_temperature),
        "t/parameter": model.log_temperature,
    }
    for tower, blocks in (("img", image.blocks), ("txt", text.blocks)):
        for i in range(blocks.after_mlp.shape[1]):
            stage = f"{tower}/encoder/block{i:02d}"
            ours[f"{stage}/sa"], ours[f"{stage}/+sa"] = blocks.attention[:, i], blocks.after_attention[:, i]
            ours[f"{stage}/mlp"], ours[f"{stage}/+mlp"] = blocks.mlp[:, i], blocks.after_mlp[:, i]
    recorded = goldens.under(io, "out/")
    assert recorded
    assert set(recorded) <= set(ours)
    for name, value in recorded.items():
        np.testing.assert_allclose(ours[name].reshape(value.shape), value, rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("case", INDEX)
def test_gradients_equal_the_reference(case):
    model, io = load(case)

    @jax.jit
    def scalar(model):
        zimg = jax.jit(jax.vmap(model.encode_image))(jnp.asarray(io["image"]))
        ztxt = jax.jit(jax.vmap(model.encode_text))(jnp.asarray(io["text"]))
        weighted = jnp.sum(zimg * io["scalar/wimg"]) + jnp.sum(ztxt * io["scalar/wtxt"])
        return weighted + jnp.exp(model.log_temperature)

    value, grads = jax.value_and_grad(scalar)(model)
    np.testing.assert_allclose(value, io["scalar/value"], rtol=1e-5)
    ours = to_flax(grads)
    full = goldens.under(io, "scalar/grad/")
    norms = goldens.under(io, "scalar/gradnorm/")
    rows = goldens.under(io, "scalar/grad_rows/")
    ids = rows.pop("ids", None)
    covered = {name.removeprefix("params/") for name in (*full, *norms, *rows)}
    assert covered == set(ours)
    for name, expected in full.items():
        is_noise = name.endswith("key/bias")
        actual = ours[name.removeprefix("params/")]
        np.testing.assert_allclose(actual, expected, rtol=0 if is_noise else 1e-3, atol=1e-5, err_msg=name)
    for name, expected in norms.items():
        norm = np.linalg.norm(ours[name.removeprefix("params/")])
        np.testing.assert_allclose(norm, expected, rtol=0 if name.endswith("key/bias") else 1e-3, atol=1e-5)
    for name, expected in rows.items():
        np.testing.assert_allclose(ours[name.removeprefix("params/")][ids], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", INDEX)
def test_parameters_round_trip_under_the_official_names(case):
    model, _ = load(case)
    official = goldens.under(goldens.load_npz(f"models/{case}/params.npz"), "params/")
    exported = to_flax(model)
    assert {name: list(value.shape) for name, value in exported.items()} == {
        name.removeprefix("params/"): shape for name, shape in INDEX[case]["param_shapes"].items()
    }
    for name, value in official.items():
        np.testing.assert_array_equal(exported[name], value, err_msg=name)


@pytest.mark.parametrize("name", goldens.load_npz("models/posemb.npz"))
def test_positions_equal_the_reference(name):
    kind, size, *cls = name.split("/")
    sizes = [int(x) for x in size.split("x")]
    table = sincos_2d(*sizes) if kind == "sincos2d" else sincos_1d(*sizes)
    if cls == ["cls1"]:
        table = np.concatenate([np.zeros_like(table[:1]), table])
    np.testing.assert_allclose(table, goldens.load_npz("models/posemb.npz")[name][0], rtol=0, atol=1e-6)


def masking(prefix):
    names = goldens.under(goldens.load_npz("models/masking.npz"), prefix)
    return sorted({name.rsplit("/", 1)[0] for name in names})


@pytest.mark.parametrize("tag", masking("direct/"))
def test_masking_keeps_the_reference_tokens(tag):
    case = goldens.under(goldens.load_npz("models/masking.npz"), f"direct/{tag}/")
    count = kept_tokens(case["x"].shape[1], float(case["ratio"]))
    kept, order = jax.vmap(lambda x, noise: keep_random_tokens(x, noise, count))(case["x"], case["noise"])
    np.testing.assert_array_equal(order, case["ids_keep"])
    np.testing.assert_array_equal(kept, case["kept"])


@pytest.mark.parametrize("tag", masking("model/"))
def test_masked_towers_equal_the_reference(tag):
    recorded = goldens.under(goldens.load_npz("models/masking.npz"), f"model/{tag}/")
    case = tag.rsplit("/", 1)[0]
    model, io = load(case)
    config = dataclasses.replace(model.image.config, mask_ratio=float(recorded["ratio"]))
    tower = dataclasses.replace(model.image, config=config)
    noise = jnp.asarray(recorded["noise"])

    def forward(images):
        traced = jax.vmap(lambda image, noise: tower.trace(image, mask_noise=noise))(images, noise)
        z = traced.embedding / (jnp.linalg.norm(traced.embedding, axis=1, keepdims=True) + 1e-8)
        return jnp.sum(z * recorded["w"]), (traced, z)

    grad, (traced, z) = jax.jit(jax.grad(forward, has_aux=True))(jnp.asarray(io["image"]))
    np.testing.assert_allclose(traced.with_position, recorded["with_posemb"], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(traced.blocks.attention[:, 0], recorded["encoder_block00_sa"], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(traced.blocks.after_mlp[:, -1], recorded["encoded"], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(z, recorded["zimg"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(grad, recorded["grad_image"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        jax.jit(jax.vmap(model.encode_text))(jnp.asarray(io["text"])), recorded["ztxt"], rtol=0, atol=1e-5
    )


def test_kept_token_counts_equal_the_reference():
    counts = goldens.load_json("models/mask_keep_counts.json")
    assert counts["columns"] == ["patch_tokens", "mask_ratio", "kept_tokens"]
    assert [kept_tokens(tokens, ratio) for tokens, ratio, _ in counts["rows"]] == [n for *_, n in counts["rows"]]


SHAPES = goldens.load_json("models/variant_shapes.json")


@pytest.mark.parametrize("name", SHAPES)
def test_variants_have_the_reference_shapes_and_counts(name):
    recorded = SHAPES[name]
    letter = name.split("/")[0]
    variant = VARIANTS[letter]
    for size, theirs in ((variant.image, recorded["image_variant"]), (variant.text, recorded["text_variant"])):
        assert size == Size(theirs["width"], theirs["depth"], theirs["mlp_dim"], theirs["num_heads"])
    config = from_variant(
        variant,
        patch_size=recorded["image_variant"]["patch_size"][0],
        image_size=recorded["res"],
        length=recorded["text_len"],
        embed=recorded["out_dim"],
    )
    assert count_params(abstract_clip(config)) == recorded["total"]
    first_block = {rule.name.format(i=0): list(rule.shape) for rule in flax_rules(config)}
    assert first_block == recorded["shapes"]


QUANTILES = (1, 25, 50, 75, 99)  # percent, of ``q`` in the recording


def initial_arrays(recorded):
    """Our initial parameters by official names, of a model as ``models/init_stats.json`` describes it."""
    letter, patch = recorded["variant"].split("/")
    image, text = (
        {**size._asdict(), "num_heads": size.heads} for size in (VARIANTS[letter].image, VARIANTS[letter].text)
    )
    model = {
        "image": image
        | {"patch_size": (int(patch),) * 2, "pool_type": recorded["pool_type"], "posemb": recorded["posemb"]},
        "text": text | {"pool_type": "last"},
        "out_dim": recorded["out_dim"],
        "temperature_init": recorded["temperature_init"],
    }
    config = clip_config(model, image_size=(recorded["res"],) * 2, length=recorded["text_len"])
    return to_flax(jax.jit(lambda key: CLIP.init(config, key=key))(jr.key(0)))


def check_statistics(ours, leaves):
    """Each leaf is on both sides, and initialized from the same distribution."""
    assert sorted(ours.keys() ^ leaves.keys()) == [], "leaves of only one side"
    for name, stats in leaves.items():
        values, n = ours[name].astype(np.float64), stats["n"]
        assert values.size == n, name
        if stats["std"] == 0.0:
            np.testing.assert_allclose(values, stats["mean"], rtol=0, atol=1e-6, err_msg=name)
            continue
        assert abs(values.std() / stats["std"] - 1) < 10 / math.sqrt(2 * n), name
        assert abs(values.mean() - stats["mean"]) < 10 * stats["std"] / math.sqrt(n), name
        for q, found, theirs in zip(QUANTILES, np.percentile(values, QUANTILES), stats["q"], strict=True):
            spread = stats["std"] * (0.15 if q in (1, 99) else 0.05) * math.sqrt(max(1.0, 2e4 / n))
            assert abs(found - theirs) < spread, (name, q)


def test_initializers_have_the_reference_statistics():
    recorded = goldens.load_json("models/init_stats.json")
    check_statistics(initial_arrays(recorded), recorded["leaves"])


def test_another_recording_decides_pool_and_positions():
    """Its leaves are compared, not passed over; one that only one side has is named."""
    recorded = {"variant": "Ti/16", "res": 32, "text_len": 8, "out_dim": 16, "temperature_init": 10.0}
    ours = initial_arrays(recorded | {"pool_type": "map", "posemb": "learn"})
    of_this_kind = {"img/pos_embedding", "img/MAPHead_0/probe", "img/MAPHead_0/MlpBlock_0/Dense_1/bias"}
    assert of_this_kind <= ours.keys()
    assert "img/encoder_norm/scale" not in ours
    np.testing.assert_allclose(ours["t"], math.log(10.0), rtol=1e-6)
    statistics = {
        name: {
            "n": value.size,
            "mean": float(value.mean()),
            "std": float(value.std()),
            "q": np.percentile(value, QUANTILES).tolist(),
        }
        for name, value in ours.items()
    }
    check_statistics(ours, statistics)
    for name in ("t", *of_this_kind):
        lost = {key: value for key, value in ours.items() if key != name}
        with pytest.raises(AssertionError, match=name):
            check_statistics(lost, statistics)
        with pytest.raises(AssertionError, match=name):
            check_statistics(ours, {key: value for key, value in statistics.items() if key != name})
        moved = {**ours, name: ours[name] + 1.0}
        with pytest.raises(AssertionError, match=name):
            check_statistics(moved, statistics)
