"""open_clip models in and out without torch: names, configs, positions, tokenizers, refusals, damage."""

import dataclasses
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from open_clip_folders import (
    CONFIG,
    VOCAB,
    WEIGHTS,
    assert_same_leaves,
    convert,
    edit_config,
    edit_weights,
    export_tiny,
    same_config,
    save,
    set_in,
    tiny_model,
)
from random_models import random_model
from safetensors.numpy import load_file, save_file
from tiny import model_config

from clipa_eqx.artefact import load_model
from clipa_eqx.cli import run
from clipa_eqx.data.eval_images import EvalImageConfig
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig
from clipa_eqx.tokenizer.vocabulary import write_vocab
from conversion.open_clip import main
from conversion.open_clip_config import parse_open_clip_config
from conversion.open_clip_mapping import from_clip_config, to_clip_config
from conversion.open_clip_names import open_clip_rules
from conversion.rules import export_leaves, import_leaves

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_tiny(tmp_path_factory.mktemp("open_clip"))


@pytest.fixture
def theirs(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "theirs")


def test_an_exported_model_comes_back(model, exported, tmp_path):
    loaded = convert(exported, tmp_path / "back")
    assert_same_leaves(loaded.model, model)
    assert same_config(loaded.model.config) == same_config(model.config)
    assert loaded.tokenizer.tokenizer.pieces == VOCAB
    assert loaded.preprocess.config == EvalImageConfig(size=(16, 16), resize="squash")
    assert loaded.provenance["format"] == "open_clip"
    assert loaded.provenance["profile"]["name"] == "flax"


def test_names_and_shapes_are_those_of_the_facts(exported):
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


def test_each_tensor_is_the_flax_one_as_the_facts_say(model, exported):
    from conversion.flax_names import to_flax

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


def test_the_config_makes_torch_compute_what_we_do(exported):
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


def test_released_jsons_without_numerics_mean_exact_gelu_and_1e_5(model, theirs, tmp_path):
    def drop(found):
        for tower in ("vision_cfg", "text_cfg"):
            del found["model_cfg"][tower]["act_kwargs"], found["model_cfg"][tower]["norm_kwargs"]

    edit_config(theirs, drop)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (theirs / name).unlink()
    loaded = convert(theirs, tmp_path / "back")
    for blocks in (loaded.model.config.image.blocks, loaded.model.config.text.blocks):
        assert (blocks.gelu, blocks.norm_eps) == ("exact", 1e-5)
    profile = loaded.provenance["profile"]
    assert profile["name"] == "open_clip"
    assert "open_clip_config.json" in profile["why"]
    # Such a model goes out as it came.
    main(["export", str(tmp_path / "back"), str(tmp_path / "again")])
    again = json.loads((tmp_path / "again" / CONFIG).read_text())["model_cfg"]
    assert "act_kwargs" not in again["vision_cfg"]
    assert "norm_kwargs" not in again["text_cfg"]
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["tokenizer_class"] == "BertTokenizer"


def test_positions_that_are_no_formula_of_ours_are_loaded_as_learned(model, theirs, tmp_path, caplog):
    table = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    edit_weights(theirs, lambda t: t.update({"visual.positional_embedding": table}))
    with caplog.at_level("INFO"):
        loaded = convert(theirs, tmp_path / "back")
    assert loaded.model.config.image.position == "learned"
    np.testing.assert_array_equal(loaded.model.image.position, table)
    assert "visual.positional_embedding is up to" in caplog.text
    assert any("off sincos2d with denominator q-1" in note for note in loaded.provenance["config_notes"])


def test_positions_that_contradict_a_named_config_are_an_error_that_a_flag_overrules(model, theirs, tmp_path, capsys):
    table = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    edit_weights(theirs, lambda t: t.update({"visual.positional_embedding": table}))
    named = save(tmp_path / "model", model) / "config.json"
    argv = ["import", str(theirs), str(tmp_path / "back"), "--config", str(named)]
    assert run(lambda: main(argv)) == 2
    err = capsys.readouterr().err
    assert "image.position: learned by the file (visual.positional_embedding is up to" in err
    assert f"sincos2d in {named}; --image-position overrules" in err
    main([*argv, "--image-position", "learned"])
    np.testing.assert_array_equal(load_model(tmp_path / "back").model.image.position, table)


def test_an_image_size_that_cannot_be_is_an_error_and_no_table_is_made_for_it(theirs, tmp_path, capsys):
    source = shutil.copy(theirs / WEIGHTS, tmp_path / "weights.safetensors")
    write_vocab(VOCAB, tmp_path / "vocab.txt")
    argv = [
        "import",
        str(source),
        str(tmp_path / "back"),
        *BARE,
        str(tmp_path / "vocab.txt"),
        "--image-size",
        "99999992",
    ]
    assert run(lambda: main(argv)) == 2
    assert "no model takes more than 4096 pixels" in capsys.readouterr().err


def test_computed_positions_are_dropped_and_can_be_kept(exported, tmp_path):
    dropped = convert(exported, tmp_path / "dropped")
    assert dropped.model.image.position is None
    kept = convert(exported, tmp_path / "kept", "--image-position", "learned")
    np.testing.assert_array_equal(
        kept.model.image.position, load_file(exported / WEIGHTS)["visual.positional_embedding"]
    )


def test_a_file_alone_needs_what_shapes_do_not_tell(model, theirs, tmp_path, capsys):
    shutil.copy(theirs / WEIGHTS, tmp_path / "weights.safetensors")
    source = tmp_path / "weights.safetensors"
    assert run(lambda: main(["import", str(source), str(tmp_path / "back")])) == 2
    err = capsys.readouterr().err
    for flag in ("--image-heads", "--text-heads", "--image-pool", "--text-pool"):
        assert flag in err
    write_vocab(VOCAB, tmp_path / "vocab.txt")
    flags = "--image-heads 2 --text-heads 2 --image-pool gap --text-pool last --profile flax --vocab".split()  # noqa: SIM905
    loaded = convert(source, tmp_path / "back", *flags, tmp_path / "vocab.txt")
    assert_same_leaves(loaded.model, model)
    assert loaded.model.config.image.blocks.gelu == "tanh"
    assert loaded.provenance["vocabulary"]["origin"] == "--vocab vocab.txt"


BARE = ("--image-heads", "2", "--text-heads", "2", "--image-pool", "gap", "--text-pool", "last", "--vocab")


def test_our_export_says_its_numerics_in_the_weight_file_itself(theirs, tmp_path, caplog, capsys):
    write_vocab(VOCAB, tmp_path / "vocab.txt")
    source = shutil.copy(theirs / WEIGHTS, tmp_path / "weights.safetensors")
    loaded = convert(source, tmp_path / "back", *BARE, tmp_path / "vocab.txt")
    profile = loaded.provenance["profile"]
    assert (profile["name"], profile["why"]) == ("flax", "the metadata of weights.safetensors")
    assert loaded.model.config.text.blocks.norm_eps == 1e-6
    with caplog.at_level("INFO"):
        convert(source, tmp_path / "other", *BARE, tmp_path / "vocab.txt", "--profile", "open_clip")
    assert "the profile is flax by the metadata of weights.safetensors; open_clip because --profile" in caplog.text
    # Written by torch, it says nothing.
    tensors = load_file(theirs / WEIGHTS)
    save_file(tensors, source)
    loaded = convert(source, tmp_path / "plain", *BARE, tmp_path / "vocab.txt")
    assert loaded.provenance["profile"]["name"] == "open_clip"
    save_file(tensors, source, metadata={"clipa_eqx_numerics": '{"image": {"norm_eps": 0, "gelu": "tanh"}}'})
    argv = ["import", str(source), str(tmp_path / "bad"), *BARE, str(tmp_path / "vocab.txt")]
    assert run(lambda: main(argv)) == 2
    assert "metadata clipa_eqx_numerics" in capsys.readouterr().err


def test_two_numerics_that_are_no_profile_are_not_taken_for_equal(theirs, tmp_path, capsys):
    for tower in ("vision_cfg", "text_cfg"):
        edit_config(theirs, set_in("model_cfg", tower, norm_kwargs={"eps": 1e-3}))
    named = save(tmp_path / "named", random_model(model_config(blocks={"depth": 1, "norm_eps": 1e-4}))) / "config.json"
    argv = ["import", str(theirs), str(tmp_path / "back"), "--config", str(named)]
    assert run(lambda: main(argv)) == 2
    err = capsys.readouterr().err
    assert "'norm_eps': 0.001" in err
    assert "'norm_eps': 0.0001" in err
    assert "say which with --profile" in err


def test_a_model_folder_of_ours_is_no_source(model, tmp_path, capsys):
    save(tmp_path / "model", model)
    for source in (tmp_path / "model", tmp_path / "model" / "model.safetensors"):
        assert run(lambda source=source: main(["import", str(source), str(tmp_path / "back")])) == 2
        assert f"{tmp_path / 'model'} is already a model folder" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["module.", "text."])
def test_other_spellings_of_the_names_are_known(prefix, model, theirs, tmp_path):
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
    assert loaded.provenance["layout"]["dtypes"] == [np.dtype(dtype).name]


def test_a_scale_of_shape_1_is_known(model, theirs, tmp_path):
    edit_weights(theirs, lambda t: t.update(logit_scale=t["logit_scale"].reshape(1)))
    assert_same_leaves(convert(theirs, tmp_path / "back").model, model)


def test_an_existing_folder_is_replaced_only_if_asked(model, theirs, tmp_path, capsys):
    save(tmp_path / "model", model)
    argv = ["export", str(tmp_path / "model"), str(theirs)]
    assert run(lambda: main(argv)) == 2
    assert "exists already" in capsys.readouterr().err
    main([*argv, "--overwrite"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert run(lambda: main([*argv[:2], str(tmp_path / "mine"), "--overwrite"])) == 2
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_what_is_not_finite_is_neither_taken_nor_given(model, theirs, tmp_path, capsys):
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


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=configs(), seed=st.integers(0, 99))
def test_import_undoes_export_for_any_config(config, seed):
    model = random_model(config, seed=seed)
    back = import_leaves(open_clip_rules(config), export_leaves(open_clip_rules(config), model), config)
    assert_same_leaves(back, model)
    stated = parse_open_clip_config(from_clip_config(config, resize="squash"), where="test")
    got = to_clip_config(stated)
    image = dataclasses.replace(got.image, position=config.image.position)
    text = dataclasses.replace(got.text, position=config.text.position)
    got = dataclasses.replace(got, image=image, text=text)
    assert same_config(got) == same_config(config)


@pytest.mark.usefixtures("no_self_check")
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=configs(), seed=st.integers(0, 99))
def test_folders_come_back_for_any_config(config, seed, tmp_path_factory):
    root, model = tmp_path_factory.mktemp("any"), random_model(config, seed=seed)
    save(root / "model", model)
    main(["export", str(root / "model"), str(root / "theirs")])
    loaded = convert(root / "theirs", root / "back")
    assert_same_leaves(loaded.model, model)
    assert same_config(loaded.model.config) == same_config(config)
