"""Names with the prefixes of wrappers are read; files of other programs are refused in one message that names them."""

import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.leaves import assert_same_leaves
from support.open_clip_folders import convert, edit_weights

from clipa_eqx.cli import run
from conversion.flax_clipa.__main__ import main as flax_main
from conversion.open_clip.__main__ import main
from conversion.open_clip.layouts import short_name

pytestmark = pytest.mark.usefixtures("quick_compile")


def _in_blocks(name):
    return name.replace("resblocks.0.", "resblocks.0._checkpoint_wrapped_module.")


@pytest.mark.parametrize(
    "respell",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"module.module.{name}",
        lambda name: f"_fsdp_wrapped_module._orig_mod.{_in_blocks(name)}",
        lambda name: name.replace("visual.", "visual._orig_mod."),
        lambda name: f"_orig_mod.{name}" if name.startswith("visual.") else f"module.{name}",
        lambda name: (
            f"module._orig_mod.{name}" if name.startswith(("visual.", "logit")) else f"module._orig_mod.text.{name}"
        ),
    ],
    ids=["compiled", "both", "reversed", "twice", "sharded", "tower", "mixed", "text"],
)
def test_names_with_prefixes_of_wrappers_are_read(respell, model, theirs, tmp_path):
    edit_weights(theirs, lambda tensors: tensors.update({respell(name): tensors.pop(name) for name in list(tensors)}))
    assert_same_leaves(convert(theirs, tmp_path / "back").model, model)


def test_a_name_that_occurs_with_and_without_a_prefix_is_an_error(theirs, tmp_path, capsys):
    edit_weights(theirs, lambda tensors: tensors.update({"_orig_mod.visual.proj": tensors["visual.proj"]}))
    assert run(lambda: main(["import", str(theirs), str(tmp_path / "back")])) == 2
    assert "holds visual.proj twice" in capsys.readouterr().err


def test_parts_of_names_that_only_look_like_wrappers_stay():
    assert short_name("transformer.modules.0.weight") == "transformer.modules.0.weight"


BLOCK = "encoder.layers.{i}.self_attn.q_proj.weight"
LAYOUTS = {
    "transformers": (
        [f"{tower}.{BLOCK.format(i=i)}" for tower in ("text_model", "vision_model") for i in range(60)]
        + ["logit_scale", "text_projection.weight", "visual_projection.weight"],
        ["layout of Hugging Face transformers (CLIPModel)", "open_clip_model.safetensors"],
    ),
    "compiled transformers": (
        [f"_orig_mod.vision_model.{BLOCK.format(i=i)}" for i in range(3)],
        ["layout of Hugging Face transformers (CLIPModel)"],
    ),
    "timm": (["cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"], ["a timm image tower alone"]),
    "timm in open_clip": (
        ["visual.trunk.blocks.0.attn.qkv.weight", "positional_embedding"],
        ["an open_clip model with a timm image tower", "visual.trunk.blocks.0.attn.qkv.weight"],
    ),
    "EVA": (["visual.blocks.0.attn.q_proj.weight", "text.transformer.resblocks.0.ln_1.bias"], ["EVA-CLIP"]),
    "ResNet": (["visual.layer1.0.conv1.weight", "ln_final.weight"], ["an open_clip ResNet"]),
    "XLM": (["text.transformer.encoder.layer.0.weight", "visual.proj"], ["a Hugging Face text tower"]),
    "ours": (["image/patch/weight", "text/token/weight"], ["clipa_eqx itself"]),
    "big_vision": (["params/img/cls", "params/txt/head/kernel"], ["big_vision", "conversion.flax_clipa"]),
    "unknown": (
        [f"net.{i}.weight" for i in range(200)],
        ["it has net.0.weight", "expected names such as visual.conv1"],
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_layout_of_another_program_is_named_in_one_line(case, tmp_path, capsys):
    names, words = LAYOUTS[case]
    save_file({name: np.zeros(2, np.float32) for name in names}, tmp_path / "foreign.safetensors")
    assert run(lambda: main(["import", str(tmp_path / "foreign.safetensors"), str(tmp_path / "back")])) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1, err
    for word in words:
        assert word in err
    if case not in ("timm in open_clip", "EVA", "ResNet", "XLM"):
        assert f"has {len(names)} tensors, and none of the names is one of open_clip's" in err
    assert not (tmp_path / "back").exists()


def test_a_torchscript_archive_is_named_without_torch(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "ViT-B-32.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "data/0"):
            archive.writestr(f"ViT-B-32/{name}", b"x")
    assert run(lambda: main(["import", str(tmp_path / "ViT-B-32.pt"), str(tmp_path / "back")])) == 2
    assert "is a TorchScript archive, as OpenAI published its CLIP models" in capsys.readouterr().err


def test_a_file_of_the_other_importer_is_sent_to_it(theirs, tmp_path, capsys):
    (tmp_path / "weights.npz").write_bytes(b"x")
    assert run(lambda: main(["import", str(tmp_path / "weights.npz"), str(tmp_path / "back")])) == 2
    assert "for .npz use `python -m conversion.flax_clipa import`" in capsys.readouterr().err
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        for name in ("data.pkl", *(f"data/{i}" for i in range(300))):
            archive.writestr(f"archive/{name}", b"x")
    for source, what in ((theirs / "open_clip_model.safetensors", "safetensors"), (tmp_path / "weights.pt", "PyTorch")):
        assert run(lambda source=source: flax_main(["import", str(source), str(tmp_path / "back")])) == 2
        err = capsys.readouterr().err
        assert f"is a {what} file" in err
        assert "python -m conversion.open_clip import" in err
        assert len(err.splitlines()) == 1
