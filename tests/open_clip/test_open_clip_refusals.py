"""Guards that models one side cannot represent, and damaged files, are refused with the reason and leave nothing."""

import shutil

import numpy as np
import pytest
from support.damage import mutate
from support.leaves import assert_same_leaves
from support.open_clip_folders import (
    CONFIG,
    WEIGHTS,
    convert,
    edit_config,
    edit_weights,
    save,
    set_in,
    tiny_model,
)
from support.random_models import random_model
from support.tiny_models import tiny_clip_config

from clipa_eqx.cli import run
from clipa_eqx.errors import ClipaError
from clipa_eqx.saved.model import load_model
from conversion.open_clip.__main__ import main
from conversion.open_clip.config import load_open_clip_config

pytestmark = pytest.mark.usefixtures("quick_compile")


VISION, TEXT, PREPROCESS = ("model_cfg", "vision_cfg"), ("model_cfg", "text_cfg"), ("preprocess_cfg",)
REFUSED = {
    "causal": (set_in(*TEXT, no_causal_mask=False), "attention is causal"),
    "norm before": (set_in(*VISION, final_ln_after_pool=False), "the norm is before the mean"),
    "ln_pre": (set_in(*VISION, no_ln_pre=False), "no_ln_pre is not set"),
    "old mean": (set_in(*VISION, global_average_pool=True), "the mean includes the class token"),
    "quick": (set_in("model_cfg", quick_gelu=True), "quick_gelu is set"),
    "argmax": (set_in(*TEXT, pool_type="argmax"), "text_cfg.pool_type is 'argmax'"),
    "timm": (set_in(*VISION, timm_model_name="vit"), "vision_cfg.timm_model_name is 'vit'"),
    "hf": (set_in(*TEXT, hf_model_name="xlm"), "text_cfg.hf_model_name is 'xlm'"),
    "scale": (set_in(*TEXT, ls_init_value=0.1), "text_cfg.ls_init_value"),
    "bias": (set_in("model_cfg", init_logit_bias="low"), "init_logit_bias is 'low', expected a number"),
    "no bias": (set_in("model_cfg", init_logit_bias=-10), "logit_bias"),
    "bicubic": (set_in(*PREPROCESS, interpolation="bicubic"), "interpolation bicubic; expected bilinear"),
    "openai": (set_in(*PREPROCESS, mean=[0.48, 0.45, 0.4]), "expected ImageNet's"),
    "longest": (set_in(*PREPROCESS, resize_mode="longest"), "resize_mode longest"),
    "size": (set_in(*PREPROCESS, size=24), "preprocess_cfg.size is (24, 24)"),
    "sep": (set_in(*TEXT, tokenizer_kwargs={}), "[SEP] is kept (no strip_sep_token)"),
    "clean": (
        set_in(*TEXT, tokenizer_kwargs={"strip_sep_token": True, "clean": "canonicalize"}),
        "text_cfg.tokenizer_kwargs.clean is 'canonicalize'",
    ),
    "kwarg": (
        set_in(*TEXT, tokenizer_kwargs={"strip_sep_token": True, "use_fast": False}),
        "text_cfg.tokenizer_kwargs.use_fast (False) is an unknown field",
    ),
    "width": (set_in(*VISION, width=48), "image.blocks.width: 48 in open_clip_config.json, 32 in the file"),
    "heads": (set_in(*VISION, head_width=10), "is not a multiple of 3 heads"),
    "text": (set_in(*TEXT, width="many"), "text_cfg.width is 'many'"),
    "eps": (set_in(*TEXT, norm_kwargs={"eps": 0}), "norm_kwargs.eps is 0"),
    "affine": (
        set_in(*TEXT, norm_kwargs={"elementwise_affine": False}),
        "norm_kwargs.elementwise_affine (False) is an unknown field",
    ),
    "none": (lambda found: found["model_cfg"].pop("vision_cfg"), "vision_cfg is missing"),
    "not an object": (set_in("model_cfg", vision_cfg=[1]), "vision_cfg is [1], expected an object"),
    "unknown of vision": (set_in(*VISION, rope=True, layers=1), "vision_cfg.rope (True) is an unknown field"),
    "unknown of text": (set_in(*TEXT, act="relu"), "text_cfg.act ('relu') is an unknown field"),
    "unknown of model": (set_in("model_cfg", multimodal_cfg={}), "multimodal_cfg ({}) is an unknown field"),
    "unknown of preprocess": (set_in(*PREPROCESS, blur=1), "preprocess_cfg.blur (1) is an unknown field"),
    "no preprocess": (lambda found: found.pop("preprocess_cfg"), "interpolation bicubic; expected bilinear"),
    "null preprocess": (set_in(preprocess_cfg=None), "mean (0.48145466, 0.4578275, 0.40821073)"),
    "empty preprocess": (set_in(preprocess_cfg={}), "mean (0.48145466, 0.4578275, 0.40821073)"),
    "unknown next to them": (set_in(preproces_cfg={}), "preproces_cfg ({}) is an unknown field"),
    "preprocess inside": (set_in("model_cfg", preprocess_cfg={}), "preprocess_cfg ({}) is an unknown field"),
    "size word": (set_in(*PREPROCESS, size="16"), "size is '16', expected pixels or a list of two\n"),
    "gray": (set_in(*PREPROCESS, mode="L"), "preprocess_cfg.mode is 'L'"),
    "norm word of text": (
        set_in(*TEXT, final_ln_after_pool="yes"),
        "final_ln_after_pool is 'yes', expected bool",
    ),
    "eos word": (set_in(*TEXT, eos_id="yes"), "text_cfg.eos_id is 'yes', expected int"),
    "scale word": (set_in("model_cfg", init_logit_scale="x"), "init_logit_scale is 'x', expected float"),
    "custom number": (set_in("model_cfg", custom_text=5), "custom_text is 5, expected bool"),
    "timm word": (set_in(*VISION, timm_drop=[1]), "vision_cfg.timm_drop is [1], expected float"),
    "std": (set_in(*PREPROCESS, std=[0.2, 0, 0.2]), "preprocess_cfg.std is [0.2, 0, 0.2], expected three positive"),
    "norm list": (set_in(*VISION, norm_kwargs=[1]), "vision_cfg.norm_kwargs is [1], expected an object"),
    "act word": (set_in(*VISION, act_kwargs="tanh"), "vision_cfg.act_kwargs is 'tanh', expected an object"),
    "act inplace": (
        set_in(*TEXT, act_kwargs={"inplace": True}),
        "text_cfg.act_kwargs.inplace (True) is an unknown field",
    ),
    "quick word": (set_in("model_cfg", quick_gelu="yes"), "quick_gelu is 'yes', expected true or false"),
    "causal word": (set_in(*TEXT, no_causal_mask="true"), "text_cfg.no_causal_mask is 'true', expected true or"),
    "number for a flag": (set_in(*TEXT, embed_cls=0), "text_cfg.embed_cls is 0, which is not supported"),
    "kwargs": (set_in(*TEXT, tokenizer_kwargs=[1]), "text_cfg.tokenizer_kwargs is [1], expected an object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_config_that_our_model_cannot_represent_is_refused(case, theirs, tmp_path, capsys):
    change, words = REFUSED[case]
    edit_config(theirs, change)
    assert run(lambda: main(["import", str(theirs), str(tmp_path / "back")])) == 2
    err = capsys.readouterr().err
    assert words in err
    # The placeholder of a wrong field is not reported as a second mistake.
    assert "(1, 1)" not in err
    assert not (tmp_path / "back").exists()


def test_defaults_may_be_stated(theirs):
    change = {"patch_dropout": 0.5, "attentional_pool": False, "ls_init_value": None, "timm_pool": "avg", "in_chans": 3}
    edit_config(theirs, set_in(*VISION, **change))
    edit_config(theirs, set_in(*TEXT, pad_id=0, proj_type="linear", hf_model_name=None, final_ln_after_pool=False))
    edit_config(theirs, set_in("model_cfg", custom_text=True, init_logit_bias=None, quick_gelu=False))
    edit_config(theirs, set_in(*PREPROCESS, fill_color=0))
    assert load_open_clip_config(theirs / CONFIG).image.layers == 1


def test_all_tensors_that_do_not_fit_are_listed_at_once(theirs, tmp_path, capsys):
    def spoil(tensors):
        del tensors["visual.proj"]
        tensors["visual.ln_pre.weight"] = np.ones(32, np.float32)
        tensors["ln_final.bias"] = np.ones(33, np.float32)

    edit_weights(theirs, spoil)
    assert run(lambda: main(["import", str(theirs), str(tmp_path / "back")])) == 2
    err = capsys.readouterr().err
    assert "missing: visual.proj (32, 16) for image/head/weight" in err
    assert "unused: visual.ln_pre.weight (32,)" in err
    assert "shape: ln_final.bias is (33,), expected (32,)" in err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": {"pool": "map"}}, "image pool 'map'"),
        ({"image": {"patch": "linear"}}, "image patch 'linear'"),
        ({"text": {"pool": "gap"}}, "text pool 'gap'"),
        ({"image": {"embed": None}, "text": {"embed": None}}, "a tower without a head"),
    ],
)
def test_a_model_that_open_clip_cannot_represent_is_not_exported(changes, words, tmp_path, capsys):
    save(tmp_path / "model", random_model(tiny_clip_config(**changes)))
    assert run(lambda: main(["export", str(tmp_path / "model"), str(tmp_path / "theirs")])) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "theirs").exists()


def fuzz(count, seed, exported, tmp_path):
    """Import ``count`` damaged folders; return how many were refused. Each leaves nothing or a complete model.

    Safetensors files carry no checksums: a flipped bit in the values or in the config is just another number. With a
    damaged header or vocabulary, the weights are unchanged or refused.
    """
    rng = np.random.default_rng(seed)
    source, target = shutil.copytree(exported, tmp_path / "theirs"), tmp_path / "out" / "back"
    files = [source / name for name in (WEIGHTS, CONFIG, "vocab.txt")]
    refused = 0
    for _ in range(count):
        file = files[rng.choice(3, p=[0.6, 0.3, 0.1])]
        before = file.read_bytes()
        data = mutate(before, rng)
        is_same = file.name == "vocab.txt"
        if file.name == WEIGHTS and rng.random() < 0.7:
            # Most damage should hit the header, which is a small part of the file.
            size = 8 + int.from_bytes(before[:8], "little")
            data = mutate(before[:size], rng) + before[size:]
            is_same = True
        file.write_bytes(data)
        try:
            convert(source, target)
        except ClipaError:
            refused += 1
            assert not target.parent.exists() or not any(target.parent.iterdir())
        else:
            if is_same:
                assert_same_leaves(load_model(target).model, tiny_model())
            shutil.rmtree(target)
        file.write_bytes(before)
    return refused


@pytest.mark.usefixtures("no_self_check")
def test_damage_never_leaves_anything_behind(exported, tmp_path):
    assert fuzz(60, 0, exported, tmp_path) > 30


@pytest.mark.slow
@pytest.mark.usefixtures("no_self_check")
@pytest.mark.parametrize("seed", range(1, 5))
def test_six_hundred_damaged_models(seed, exported, tmp_path):
    assert fuzz(150, seed, exported, tmp_path) > 75
