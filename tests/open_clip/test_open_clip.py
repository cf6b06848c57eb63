"""Guards that export and import of open_clip models, without torch, undo each other: names, shapes, configs, files."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from support.leaves import assert_same_leaves
from support.open_clip_folders import (
    CONFIG,
    VOCAB,
    WEIGHTS,
    convert,
    edit_config,
    edit_weights,
    same_config,
    save,
)
from support.random_models import random_model

from clipa_eqx.cli import run
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig
from conversion.flax_clipa.names import to_flax
from conversion.open_clip.__main__ import main
from conversion.open_clip.config import parse_open_clip_config
from conversion.open_clip.mapping import from_clip_config, to_clip_config
from conversion.open_clip.names import open_clip_rules
from conversion.weights.rules import RuleTable, export_leaves, import_leaves

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_an_exported_model_comes_back(model, exported, tmp_path):
    loaded = convert(exported, tmp_path / "back")
    assert_same_leaves(loaded.model, model)
    assert same_config(loaded.model.config) == same_config(model.config)
    assert loaded.tokenizer.tokenizer.pieces == VOCAB
    assert loaded.preprocess.config == EvalImageConfig(size=(16, 16), resize="squash")
    assert loaded.provenance.format == "open_clip"
    assert loaded.provenance.profile["name"] == "flax"


def test_names_and_shapes_are_those_of_the_reference(exported):
    tensors = {name: array.shape for name, array in load_file(exported / WEIGHTS).items()}
    block = {
        "ln_1.weight": (32,),
        "ln_1.bias": (32,),
        "attn.in_proj_weight": (96, 32),
        "attn.in_proj_bias": (96,),
        "attn.out_proj.weight": (32, 32),
        "attn.out_proj.bias": (32,),
        "ln_2.weight": (32,),
        "ln_2.bias": (32,),
        "mlp.c_fc.weight": (64, 32),
        "mlp.c_fc.bias": (64,),
        "mlp.c_proj.weight": (32, 64),
        "mlp.c_proj.bias": (32,),
    }
    assert tensors == {
        "visual.conv1.weight": (32, 3, 8, 8),
        "visual.class_embedding": (32,),
        "visual.positional_embedding": (5, 32),
        "visual.ln_post.weight": (32,),
        "visual.ln_post.bias": (32,),
        "visual.proj": (32, 16),
        "token_embedding.weight": (64, 32),
        "positional_embedding": (8, 32),
        "ln_final.weight": (32,),
        "ln_final.bias": (32,),
        "text_projection": (32, 16),
        "logit_scale": (),
        **{f"visual.transformer.resblocks.0.{name}": shape for name, shape in block.items()},
        **{f"transformer.resblocks.0.{name}": shape for name, shape in block.items()},
    }


def test_each_tensor_is_the_flax_one_as_the_reference_says(model, exported):
    flax, torch = to_flax(model), load_file(exported / WEIGHTS)
    block = "img/Transformer/encoderblock_0"
    attention = f"{block}/MultiHeadDotProductAttention_0"
    fused = np.concatenate([flax[f"{attention}/{part}/kernel"].reshape(32, 32).T for part in ("query", "key", "value")])
    expected = {
        "visual.conv1.weight": flax["img/embedding/kernel"].transpose(3, 2, 0, 1),
        "visual.proj": flax["img/head/kernel"],
        "text_projection": flax["txt/head/kernel"],
        "positional_embedding": flax["txt/pos_embedding"][0],
        "logit_scale": flax["t"][0],
        "visual.transformer.resblocks.0.attn.in_proj_weight": fused,
        "visual.transformer.resblocks.0.attn.out_proj.weight": flax[f"{attention}/out/kernel"].reshape(32, 32).T,
        "visual.transformer.resblocks.0.mlp.c_fc.weight": flax[f"{block}/MlpBlock_0/Dense_0/kernel"].T,
        "visual.transformer.resblocks.0.ln_1.weight": flax[f"{block}/LayerNorm_0/scale"],
    }
    for name, array in expected.items():
        np.testing.assert_array_equal(torch[name], array, err_msg=name)


def test_the_exported_config_has_our_numerics_pooling_and_preprocessing(exported):
    found = json.loads((exported / CONFIG).read_text())
    vision, text = found["model_cfg"]["vision_cfg"], found["model_cfg"]["text_cfg"]
    for tower in (vision, text):
        assert tower["act_kwargs"] == {"approximate": "tanh"}
        assert tower["norm_kwargs"] == {"eps": 1e-6}
    assert (vision["no_ln_pre"], vision["final_ln_after_pool"], vision["pool_type"]) == (True, True, "avg")
    assert (text["no_causal_mask"], text["pool_type"], text["context_length"]) == (True, "last", 8)
    assert text["tokenizer_kwargs"] == {"strip_sep_token": True}
    assert found["preprocess_cfg"] == {
        "size": 16,
        "mode": "RGB",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }


def test_a_config_without_numerics_means_exact_gelu_and_epsilon_1e_5(model, theirs, tmp_path):
    def drop(found):
        for tower in ("vision_cfg", "text_cfg"):
            del found["model_cfg"][tower]["act_kwargs"], found["model_cfg"][tower]["norm_kwargs"]

    edit_config(theirs, drop)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (theirs / name).unlink()
    loaded = convert(theirs, tmp_path / "back")
    for blocks in (loaded.model.config.image.blocks, loaded.model.config.text.blocks):
        assert (blocks.gelu, blocks.norm_eps) == ("exact", 1e-5)
    profile = loaded.provenance.profile
    assert profile["name"] == "open_clip"
    assert "open_clip_config.json" in profile["why"]
    # Such a model is exported as it was imported.
    main(["export", str(tmp_path / "back"), str(tmp_path / "again")])
    again = json.loads((tmp_path / "again" / CONFIG).read_text())["model_cfg"]
    assert "act_kwargs" not in again["vision_cfg"]
    assert "norm_kwargs" not in again["text_cfg"]
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["tokenizer_class"] == "BertTokenizer"


def test_a_model_folder_is_refused_as_a_source(model, tmp_path, capsys):
    save(tmp_path / "model", model)
    for source in (tmp_path / "model", tmp_path / "model" / "model.safetensors"):
        assert run(lambda source=source: main(["import", str(source), str(tmp_path / "back")])) == 2
        assert f"{tmp_path / 'model'} is a model folder already" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["module.", "text."])
def test_names_with_known_prefixes_are_read(prefix, model, theirs, tmp_path):
    def respell(tensors):
        for name in list(tensors):
            if prefix == "module." or not (name.startswith("visual.") or name == "logit_scale"):
                tensors[prefix + name] = tensors.pop(name)

    edit_weights(theirs, respell)
    assert_same_leaves(convert(theirs, tmp_path / "back").model, model)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_exactly(dtype, theirs, tmp_path):
    edit_weights(theirs, lambda t: t.update({name: array.astype(dtype) for name, array in t.items()}))
    loaded = convert(theirs, tmp_path / "back")
    stored = load_file(theirs / WEIGHTS)["token_embedding.weight"]
    np.testing.assert_array_equal(loaded.model.text.token.weight, stored.astype(np.float32))
    assert loaded.provenance.layout["dtypes"] == [np.dtype(dtype).name]


def test_a_scale_of_shape_1_is_read(model, theirs, tmp_path):
    edit_weights(theirs, lambda t: t.update(logit_scale=t["logit_scale"].reshape(1)))
    assert_same_leaves(convert(theirs, tmp_path / "back").model, model)


def test_an_existing_folder_is_replaced_only_on_request_and_only_if_exported_here(model, theirs, tmp_path, capsys):
    save(tmp_path / "model", model)
    argv = ["export", str(tmp_path / "model"), str(theirs)]
    assert run(lambda: main(argv)) == 2
    assert "exists already" in capsys.readouterr().err
    main([*argv, "--overwrite"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert run(lambda: main([*argv[:2], str(tmp_path / "mine"), "--overwrite"])) == 2
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_values_that_are_not_finite_are_refused(model, theirs, tmp_path, capsys):
    edit_weights(theirs, lambda t: t["visual.proj"].__setitem__((0, 0), np.nan))
    assert run(lambda: main(["import", str(theirs), str(tmp_path / "back")])) == 2
    assert "not finite: visual.proj" in capsys.readouterr().err


blocks = st.builds(
    BlockConfig,
    width=st.sampled_from([8, 16, 24]),
    depth=st.integers(1, 3),
    mlp_dim=st.integers(1, 40),
    heads=st.sampled_from([1, 2, 4]),
    norm_eps=st.sampled_from([1e-6, 1e-5, 1e-12]),
    gelu=st.sampled_from(["tanh", "exact"]),
)


@st.composite
def configs(draw):
    patch = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    grid = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    embed = draw(st.integers(1, 9))
    image = VisionConfig(
        blocks=draw(blocks),
        image_size=(patch[0] * grid[0], patch[1] * grid[1]),
        patch_size=patch,
        position=draw(st.sampled_from(["sincos2d", "learned"])),
        pool=draw(st.sampled_from(["gap", "tok"])),
        embed=embed,
    )
    text = TextConfig(
        blocks=draw(blocks),
        length=draw(st.integers(1, 6)),
        vocab=draw(st.integers(64, 70)),
        position=draw(st.sampled_from(["sincos1d", "learned"])),
        pool=draw(st.sampled_from(["last", "tok"])),
        embed=embed,
    )
    return CLIPConfig(image=image, text=text)


@settings(max_examples=200, deadline=None)
@given(config=configs())
def test_any_config_comes_back_from_its_json(config):
    stated = parse_open_clip_config(from_clip_config(config, resize="squash"), where="test")
    got = to_clip_config(stated)
    image = dataclasses.replace(got.image, position=config.image.position)
    text = dataclasses.replace(got.text, position=config.text.position)
    got = dataclasses.replace(got, image=image, text=text)
    assert same_config(got) == same_config(config)


# No deadline and few examples: each one traces the initializer of a new model, which takes about a second.
@settings(max_examples=6, deadline=None)
@given(config=configs(), seed=st.integers(0, 99))
def test_import_undoes_export_for_any_config(config, seed):
    model = random_model(config, seed=seed)
    table = RuleTable(open_clip_rules(config), config)
    back = import_leaves(table, export_leaves(table.rules, model))
    assert_same_leaves(back, model)


# The fixture that is not reset between examples only replaces the self-check, which no example changes.
@pytest.mark.usefixtures("no_self_check")
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs(), seed=st.integers(0, 99))
def test_any_model_comes_back_from_its_exported_folder(config, seed, tmp_path_factory):
    root, model = tmp_path_factory.mktemp("any"), random_model(config, seed=seed)
    save(root / "model", model)
    main(["export", str(root / "model"), str(root / "theirs")])
    loaded = convert(root / "theirs", root / "back")
    assert_same_leaves(loaded.model, model)
    assert same_config(loaded.model.config) == same_config(config)
