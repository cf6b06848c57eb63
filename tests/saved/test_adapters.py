"""Adapters on disk: what is loaded is what was saved, and other models, damage and other folders are refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.leaves import assert_bit_equal, edit_safetensors
from support.random_models import random_model
from support.tiny_models import tiny_clip_config, tiny_tokenizer

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.errors import CheckpointError, ConfigError
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.saved.adapters import base_hashes, load_adapters, save_adapters
from clipa_eqx.saved.kinds import kind_of
from clipa_eqx.saved.model import load_model, save_model
from clipa_eqx.surgery import Adapters, attach, cast, with_config
from clipa_eqx.trees import leaves_by_path

BASE = random_model(tiny_clip_config())


def factors(dtype=np.float32, *, seed=1):
    rng = np.random.default_rng(seed)

    def pair(depth, rank, out, width):
        return tuple(jnp.asarray(rng.normal(size=(*depth, *one)), dtype) for one in ((rank, width), (out, rank)))

    both = {"image/blocks/attn/q": pair((2,), 3, 32, 32), "text/head": pair((), 2, 16, 32)}
    return Adapters(factors=both, alpha=6.0)


@pytest.fixture
def folder(tmp_path):
    return save_adapters(tmp_path / "adapters", factors(), base=BASE, provenance={"steps": 3})


def edit(folder, change):
    about = json.loads((folder / "adapters.json").read_text())
    change(about)
    (folder / "adapters.json").write_text(json.dumps(about))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_loaded_is_what_was_saved_bit_for_bit(dtype, tmp_path):
    saved = factors(dtype)
    path = save_adapters(tmp_path / "new" / "adapters", saved, base=BASE)
    loaded = load_adapters(path, base=BASE)
    assert loaded.alpha == saved.alpha
    assert list(loaded.factors) == list(saved.factors)
    for name, pair in saved.factors.items():
        assert_bit_equal(loaded.factors[name], pair)
    assert_bit_equal(attach(BASE, loaded).model, attach(BASE, saved).model)


def test_the_folder_describes_itself_and_is_small(folder):
    assert kind_of(folder) == "folder of adapters"
    about = json.loads((folder / "adapters.json").read_text())
    assert (about["alpha"], about["ranks"]) == (6.0, {"image/blocks/attn/q": 3, "text/head": 2})
    assert about["provenance"]["steps"] == 3
    assert set(about["base"]["leaves_sha256"]) == set(leaves_by_path(BASE))
    size = sum(array.nbytes for pair in factors().factors.values() for array in pair)
    assert (folder / "adapters.safetensors").stat().st_size < size + 1024


def test_the_base_of_a_model_folder_is_recognized_before_and_after_it_is_written(folder, tmp_path):
    parts = {"tokenizer": tiny_tokenizer(), "preprocess": EvalImageConfig(size=(16, 16)), "provenance": {}}
    loaded = load_model(save_model(tmp_path / "model", BASE, **parts))
    assert loaded.provenance.leaves_sha256 == base_hashes(BASE)
    load_adapters(folder, base=loaded.model)


def changed(path):
    def move(keys, leaf):
        return leaf + 1 if jax.tree_util.keystr(keys, simple=True, separator="/") == path else leaf

    return jax.tree_util.tree_map_with_path(move, BASE)


OTHER_HEADS = tiny_clip_config(
    image={"blocks": BlockConfig(width=32, depth=2, mlp_dim=64, heads=4)},
)
OTHERS = {
    "a leaf": (lambda: changed("text/norm/weight"), r"1 problem:\n  text/norm/weight: other values"),
    "a leaf more": (
        lambda: random_model(tiny_clip_config(bias=-10.0)),
        r"1 problem:\n  bias: missing there",
    ),
    "heads": (lambda: with_config(BASE, OTHER_HEADS).model, r"image.blocks.heads: 2 there, 4 here"),
    "rounded": (lambda: cast(BASE, "bfloat16").model, r"image/class_token: other values"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_base_is_one_error_unless_asked(name, folder):
    make, message = OTHERS[name]
    with pytest.raises(CheckpointError, match=r"(?s)was trained on another base model.*base=None.*" + message):
        load_adapters(folder, base=make())
    loaded = load_adapters(folder, base=None)
    assert attach(make(), loaded).model.text.head.scale == 3.0


def break_file(name):
    return lambda folder: (folder / name).write_bytes(b"{")


def drop_file(name):
    return lambda folder: (folder / name).unlink()


def other_factor(folder):
    edit_safetensors(folder / "adapters.safetensors", lambda leaves: leaves["text/head/lora_up"].fill(2.0))


def missing_factor(folder):
    edit_safetensors(folder / "adapters.safetensors", lambda leaves: leaves.pop("text/head/lora_up"))


DAMAGE = {
    "broken JSON": (break_file("adapters.json"), "adapters.json cannot be read"),
    "no JSON": (drop_file("adapters.json"), "expected a folder of adapters"),
    "broken factors": (break_file("adapters.safetensors"), "adapters.safetensors cannot be read"),
    "no factors": (drop_file("adapters.safetensors"), "adapters.safetensors cannot be read"),
    "other values": (other_factor, "sha256 of text/head/lora_up"),
    "a factor less": (missing_factor, "missing: text/head/lora_up"),
    "other rank": (lambda f: edit(f, lambda a: a["ranks"].update({"text/head": 9})), r"\(2, 32\), expected rank 9"),
    "unlisted": (lambda f: edit(f, lambda a: a["ranks"].pop("text/head")), "unused: text/head/lora_down"),
    "later version": (lambda f: edit(f, lambda a: a.update(schema=2)), "has schema 2"),
    "no alpha": (lambda f: edit(f, lambda a: a.update(alpha=None)), "lacks a positive alpha"),
    "no checksum": (lambda f: edit(f, lambda a: a["provenance"]["leaves_sha256"].clear()), "no checksum is recorded"),
    "other config": (lambda f: edit(f, lambda a: a["base"]["config"].pop("image")), "does not describe a CLIPConfig"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name, folder):
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_adapters(folder, base=BASE)


def test_a_model_folder_is_no_folder_of_adapters(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist; expected a folder of adapters"):
        load_adapters(tmp_path / "none", base=BASE)
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not a folder of adapters, so it is not overwritten"):
        save_adapters(tmp_path, factors(), base=BASE, overwrite=True)
    assert (tmp_path / "a.txt").read_text() == "mine"


def test_a_folder_is_replaced_only_on_request_and_never_half(folder):
    other = factors(seed=2)
    with pytest.raises(CheckpointError, match="exists already"):
        save_adapters(folder, other, base=BASE)
    broken = Adapters(
        factors=other.factors | {"text/head": (other.factors["text/head"][0], jnp.full((16, 2), jnp.nan))}, alpha=1.0
    )
    with pytest.raises(CheckpointError, match="not finite: text/head/lora_up"):
        save_adapters(folder, broken, base=BASE, overwrite=True)
    assert_bit_equal(load_adapters(folder, base=BASE).factors["text/head"], factors().factors["text/head"])
    save_adapters(folder, other, base=BASE, overwrite=True)
    assert_bit_equal(load_adapters(folder, base=BASE).factors["text/head"], other.factors["text/head"])
    assert [path.name for path in folder.parent.iterdir()] == ["adapters"]


def test_factors_of_another_model_are_not_saved(tmp_path):
    wide = random_model(tiny_clip_config(text={"embed": 8}, image={"embed": 8}))
    with pytest.raises(ConfigError, match="text/head: factors"):
        save_adapters(tmp_path / "adapters", factors(), base=wide)
    assert not (tmp_path / "adapters").exists()
