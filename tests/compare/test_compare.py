"""Guards that every known mistake of converters, planted in a model, is the reported cause, and no other one is."""

import dataclasses
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.comparison import DIM, HEADS, IMAGE_BLOCK, LENGTH, SIZE, TEXT, TEXT_BLOCK, VISION, compared, named
from support.open_clip_folders import WEIGHTS, edit_config, edit_weights, set_in
from support.random_models import random_model
from support.tiny_models import tiny_clip_config

from clipa_eqx.cli import run
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.saved.model import save_model
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from conversion.compare import causes
from conversion.compare import images as compare_images
from conversion.compare.__main__ import main
from conversion.compare.position_changes import sincos_2d
from conversion.flax_clipa.names import to_flax

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_a_model_and_its_export_do_not_differ(folders, tmp_path, capsys):
    report = compared(folders / "ours", folders / "theirs", tmp_path)
    assert report["divergences"] == []
    assert report["embedding_error"] == {"image": 0.0, "text": 0.0}
    assert "texts: 6 of 6 have equal ids" in report["notes"]
    assert "no difference" in capsys.readouterr().out


CONFIGS = {
    "image eps": (VISION, {"norm_kwargs": {"eps": 1e-5}}, "image/blocks/0/norm1", causes.EPS),
    "text eps": (TEXT, {"norm_kwargs": {"eps": 1e-12}}, "text/blocks/0/norm1", causes.EPS),
    "image gelu": (VISION, {"act_kwargs": None}, "image/blocks/0/mlp/gelu", causes.GELU),
    "text gelu": (TEXT, {"act_kwargs": None}, "text/blocks/0/mlp/gelu", causes.GELU),
    "quick gelu": (("model_cfg",), {"quick_gelu": True}, "image/blocks/0/mlp/gelu", causes.GELU),
    "norm before pool": (VISION, {"final_ln_after_pool": False}, "image/pool", causes.NORM_PLACE),
    "class in mean": (VISION, {"global_average_pool": True}, "image/pool", causes.CLASS_IN_MEAN),
    "image pool": (VISION, {"pool_type": "tok"}, "image/pool", causes.POOL),
    "text pool": (TEXT, {"pool_type": "first"}, "text/pool", causes.POOL),
    "causal": (TEXT, {"no_causal_mask": False}, "text/blocks/0/attention", causes.CAUSAL),
    "heads": (TEXT, {"heads": 4}, "text/blocks/0/attention", causes.HEADS),
    "mean": (("preprocess_cfg",), {"mean": [0.5, 0.5, 0.5]}, "preprocessing", compare_images.MEAN_STD),
    "std": (
        ("preprocess_cfg",),
        {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]},
        "preprocessing",
        compare_images.MEAN_STD,
    ),
    "mode": (("preprocess_cfg",), {"resize_mode": "shortest"}, "preprocessing", compare_images.RESIZE_MODE),
    "bicubic": (("preprocess_cfg",), {"interpolation": "bicubic"}, "preprocessing", compare_images.INTERPOLATION),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_changed_setting_is_the_cause(case, folders, theirs, tmp_path):
    keys, values, where, cause = CONFIGS[case]
    edit_config(theirs, set_in(*keys, **values))
    report = compared(folders / "ours", theirs, tmp_path)
    assert report["first"]["where"] == where
    assert report["first"]["causes"][0][0] == cause
    assert cause in named(report)
    # With the class token in the mean the place of the norm changes too; nothing else is reported.
    assert named(report) <= {cause, causes.NORM_PLACE}


def swap(array, one, two):
    parts = np.split(array, 3)
    parts[one], parts[two] = parts[two], parts[one]
    return np.concatenate(parts)


def interleave(weight):
    parts = np.split(weight, 3)
    parts[0] = parts[0].reshape(HEADS, -1, DIM).swapaxes(0, 1).reshape(DIM, DIM)
    return np.concatenate(parts)


def transpose_v(weight):
    q, k, v = np.split(weight, 3)
    return np.concatenate([q, k, v.T])


WEIGHT_CASES = {
    "q and k": ({f"{IMAGE_BLOCK}.attn.in_proj_weight": lambda w: swap(w, 0, 1)}, "attn/q", causes.PERMUTED),
    "k and v with biases": (
        {
            f"{IMAGE_BLOCK}.attn.in_proj_weight": lambda w: swap(w, 1, 2),
            f"{IMAGE_BLOCK}.attn.in_proj_bias": lambda b: swap(b, 1, 2),
        },
        "attn/k",
        causes.PERMUTED,
    ),
    "v transposed": ({f"{IMAGE_BLOCK}.attn.in_proj_weight": transpose_v}, "attn/v", causes.TRANSPOSED),
    "out transposed": ({f"{IMAGE_BLOCK}.attn.out_proj.weight": lambda w: w.T}, "attn/out", causes.TRANSPOSED),
    "heads interleaved": ({f"{IMAGE_BLOCK}.attn.in_proj_weight": interleave}, "attn/q", causes.INTERLEAVED),
    "q without bias": (
        {f"{IMAGE_BLOCK}.attn.in_proj_bias": lambda b: np.concatenate([0 * b[:DIM], b[DIM:]])},
        "attn/q",
        causes.NO_BIAS,
    ),
    "out without bias": ({f"{IMAGE_BLOCK}.attn.out_proj.bias": np.zeros_like}, "attn/out", causes.NO_BIAS),
    "mlp without bias": ({f"{IMAGE_BLOCK}.mlp.c_proj.bias": np.zeros_like}, "mlp/fc_out", causes.NO_BIAS),
    "norm without bias": ({f"{IMAGE_BLOCK}.ln_2.bias": np.zeros_like}, "norm2", causes.NO_BIAS),
    "bfloat16": (
        {f"{IMAGE_BLOCK}.mlp.c_fc.weight": lambda w: w.astype(ml_dtypes.bfloat16).astype(np.float32)},
        "mlp/fc_in",
        causes.ROUNDED,
    ),
}


@pytest.mark.parametrize("case", WEIGHT_CASES)
def test_a_mistake_in_the_weights_of_a_block_is_the_cause(case, folders, theirs, tmp_path):
    changes, step, cause = WEIGHT_CASES[case]
    edit_weights(theirs, lambda t: t.update({name: change(t[name]) for name, change in changes.items()}))
    if cause == causes.ROUNDED:
        # A converter that rounds does so for all leaves of the step.
        edit_weights(
            theirs,
            lambda t: t.update(
                {f"{IMAGE_BLOCK}.mlp.c_fc.bias": t[f"{IMAGE_BLOCK}.mlp.c_fc.bias"].astype("bfloat16").astype("f4")}
            ),
        )
    report = compared(folders / "ours", theirs, tmp_path)
    assert report["first"]["where"] == f"image/blocks/1/{step}"
    assert named(report) == {cause}


OUTER_CASES = {
    "head transposed": ("text_projection", np.transpose, "text/head", causes.TRANSPOSED),
    "image head transposed": ("visual.proj", np.transpose, "image/head", causes.TRANSPOSED),
    "blue first": ("visual.conv1.weight", lambda w: w[:, ::-1], "image/patch", causes.PATCH_ORDER),
    "columns first": ("visual.conv1.weight", lambda w: w.swapaxes(2, 3), "image/patch", causes.PATCH_ORDER),
    "denominator": (
        "visual.positional_embedding",
        lambda t: sincos_2d((2, 2), DIM, 0).astype(np.float32),
        "image/+position",
        causes.DENOMINATOR,
    ),
    "y first": (
        "visual.positional_embedding",
        lambda t: np.concatenate([t[:, 16:], t[:, :16]], axis=1),
        "image/+position",
        causes.SWAPPED_AXES,
    ),
    "no positions": ("positional_embedding", np.zeros_like, "text/+position", causes.NO_POSITION),
    "temperature": ("logit_scale", np.exp, "log_temperature", "temperature stored as exp"),
}


@pytest.mark.parametrize("case", OUTER_CASES)
def test_a_mistake_outside_the_blocks_is_the_cause(case, folders, theirs, tmp_path):
    name, change, where, cause = OUTER_CASES[case]
    edit_weights(theirs, lambda t: t.update({name: change(t[name])}))
    report = compared(folders / "ours", theirs, tmp_path)
    assert report["first"]["where"] == where
    assert named(report) == {cause}


@pytest.mark.parametrize("name", [f"{TEXT_BLOCK}.attn.in_proj_bias", f"{TEXT_BLOCK}.mlp.c_fc.bias", "ln_final.bias"])
def test_a_bias_missing_in_the_file_is_the_cause(name, folders, theirs, tmp_path):
    edit_weights(theirs, lambda t: t.pop(name))
    report = compared(folders / "ours", theirs, tmp_path)
    assert named(report) == {causes.NO_BIAS}
    assert "B has none" in report["first"]["causes"][0][1]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_on_either_side_is_the_only_cause(dtype, folders, theirs, tmp_path):
    """Position tables and temperature are rounded too."""
    edit_weights(theirs, lambda t: t.update({name: array.astype(dtype) for name, array in t.items()}))
    name = np.dtype(dtype).name
    for sides, detail in (
        ((folders / "ours", theirs), f"B's are A's in {name}"),
        ((theirs, folders / "ours"), f"A's are B's in {name}"),
    ):
        report = compared(*sides, tmp_path)
        assert {one["where"] for one in report["divergences"]} >= {"image/patch", "log_temperature"}
        steps = {step for one in report["divergences"] for step in one.get("steps", ())}
        assert {"image/+position", "text/+position", "text/blocks/0/mlp/fc_in"} <= steps
        assert named(report) == {causes.ROUNDED}
        of_towers = [one["causes"] for one in report["divergences"] if one["where"] != "log_temperature"]
        assert of_towers == [[[causes.ROUNDED, detail]]] * 2


def test_the_denominator_is_the_cause_in_either_order_and_only_for_a_formula(folders, theirs, tmp_path):
    name = "visual.positional_embedding"
    edit_weights(theirs, lambda t: t.update({name: sincos_2d((2, 2), DIM, 0).astype(np.float32)}))
    report = compared(theirs, folders / "ours", tmp_path)
    assert report["first"]["causes"] == [[causes.DENOMINATOR, "B divides by q-1"]]
    edit_weights(theirs, lambda t: t.update({name: np.random.default_rng(0).normal(size=t[name].shape).astype("f4")}))
    report = compared(theirs, folders / "ours", tmp_path)
    assert report["first"]["where"] == "image/+position"
    assert named(report) == set()


def test_a_mistake_in_a_flax_file_is_the_cause(model, folders, tmp_path):
    arrays = to_flax(model)
    name = "txt/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/value/kernel"
    arrays[name] = np.ascontiguousarray(arrays[name].reshape(DIM, DIM).T).reshape(arrays[name].shape)
    np.savez(tmp_path / "theirs.npz", **arrays)
    report = compared(folders / "ours", tmp_path / "theirs.npz", tmp_path)
    assert report["first"]["where"] == "text/blocks/1/attn/v"
    assert named(report) == {causes.TRANSPOSED}
    assert any("is not recorded" in note for note in report["notes"])
    np.savez(tmp_path / "same.npz", **to_flax(model))
    assert compared(tmp_path / "same.npz", folders / "theirs", tmp_path)["first"] is None


def test_recorded_settings_are_compared_and_the_rest_comes_from_the_other_side(model, folders, tmp_path):
    config = dataclasses.replace(
        model.config,
        text=dataclasses.replace(model.config.text, blocks=BlockConfig(width=32, depth=2, mlp_dim=64, heads=4)),
    )
    other = dataclasses.replace(model, config=config, text=dataclasses.replace(model.text, config=config.text))
    np.savez(tmp_path / "heads.npz", **to_flax(other))
    report = compared(folders / "ours", tmp_path / "heads.npz", tmp_path)
    assert report["first"]["where"] == "text/blocks/0/attention"
    assert named(report) == {causes.HEADS}
    # Our export records its numerics in the file; a file that does not has those of torch.
    shutil.copy(folders / "theirs" / WEIGHTS, tmp_path / WEIGHTS)
    assert compared(tmp_path / WEIGHTS, folders / "ours", tmp_path)["first"] is None
    edit_weights(tmp_path, lambda tensors: None)
    report = compared(tmp_path / WEIGHTS, folders / "ours", tmp_path)
    assert named(report) == {causes.EPS, causes.GELU}


def test_no_cause_is_invented_for_other_weights(folders, tmp_path, capsys):
    config = tiny_clip_config(image={"embed": 32}, text={"vocab": 30522, "length": LENGTH, "embed": 32})
    save_model(
        tmp_path / "other",
        random_model(config, seed=7),
        tokenizer=Tokenizer.bert(),
        preprocess=EvalImageConfig(size=SIZE, resize="squash"),
        provenance={},
    )
    report = compared(folders / "ours", tmp_path / "other", tmp_path)
    assert report["first"]["where"] == "image/patch"
    assert named(report) == set()
    assert "no known mistake explains it" in capsys.readouterr().out


def test_unused_flags_are_reported(folders, theirs, tmp_path, caplog):
    flags = ("--released", "h14-84px-t8-laion2b", "--image-heads", "2")
    with caplog.at_level("WARNING"):
        assert compared(folders / "ours", theirs, tmp_path, *flags)["first"] is None
    assert "--released, --image-heads: not used, both sides record all of it themselves" in caplog.text


def test_other_sizes_are_reported_and_no_operation_is_compared(folders, tmp_path):
    config = tiny_clip_config(
        image={"embed": 32, "image_size": (24, 24)}, text={"vocab": 30522, "length": 8, "embed": 32}
    )
    save_model(
        tmp_path / "other",
        random_model(config),
        tokenizer=Tokenizer.bert(),
        preprocess=EvalImageConfig(size=(24, 24), resize="squash"),
        provenance={},
    )
    report = compared(folders / "ours", tmp_path / "other", tmp_path)
    whats = {one["where"]: one["what"] for one in report["divergences"]}
    assert whats["image tower"] == "image size is (16, 16) in A, (24, 24) in B"
    assert whats["text tower"] == "tokens is 16 in A, 8 in B"


def test_leaves_of_a_model_folder_are_checked(folders, tmp_path, capsys):
    folder = shutil.copytree(folders / "ours", tmp_path / "extra")
    leaves = load_file(folder / "model.safetensors")
    leaves["log_temperature"] = leaves["log_temperature"].astype(np.float16)
    save_file(leaves | {"image/more": np.zeros(1, np.float32)}, folder / "model.safetensors")
    assert run(lambda: main([str(folders / "ours"), str(folder)])) == 2
    err = capsys.readouterr().err
    assert "unused: image/more (1,)" in err
    assert "dtype: log_temperature is float16, expected float32" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nothing", "nothing"], "there is no file or folder nothing"),
        (["{ours}", "{ours}", "--recorded-b", "nothing.npz"], "the recording nothing.npz"),
        (["{ours}", "{broken}"], "missing: visual.proj"),
        (["{ours}", "{ours}", "--released", "foo"], "no released model is called 'foo'"),
        (["{ours}", "{ours}", "--preset", "nonsense"], "nonsense"),
        (["{ours}", "{ours}", "--config", "nothing.json"], "nothing.json"),
        (["{ours}", "{ours}", "--json", "{broken}"], "is a folder"),
        (["{ours}", "{ours}", "--json", "{broken}/no/report.json"], "there is no folder"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(argv, words, folders, theirs, capsys):
    edit_weights(theirs, lambda t: t.pop("visual.proj"))
    filled = [arg.format(ours=folders / "ours", broken=theirs) for arg in argv]
    assert run(lambda: main(filled)) == 2
    errors = [line for line in capsys.readouterr().err.split("\nerror: ") if words in line]
    assert len(errors) == 1
