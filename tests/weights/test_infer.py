"""Configs from shapes: contradictions are refused, and for undetermined fields the message names the flag to give."""

import dataclasses
import json
import math

import numpy as np
import pytest
from support.tiny_models import tiny_clip, tiny_clip_config, tiny_tokenizer

from clipa_eqx.commands import command_line
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.errors import ConversionError
from clipa_eqx.json_config import to_json
from clipa_eqx.models.presets import PRESETS, T5X_TEXT, preset
from clipa_eqx.programs.show import main as show
from clipa_eqx.saved.leaf_file import Leaf
from clipa_eqx.saved.model import save_model
from conversion.flax_clipa.names import flax_rules
from conversion.flax_clipa.shapes import FlaxLayout, flax_facts
from conversion.weights.choices import Choices
from conversion.weights.import_provenance import import_provenance
from conversion.weights.infer import resolve_config
from conversion.weights.numerics import PROFILES
from conversion.weights.released import RELEASED
from conversion.weights.rules import RuleTable
from conversion.weights.text_tables import TEXT_TABLES

FULL = {"image_pool": "gap", "text_pool": "last", "image_position": "sincos2d", "image_size": 16}


def shapes_of(config, layout=None):
    placed = RuleTable(flax_rules(config, layout), config).placed
    return {name: Leaf(one.shape, np.dtype(np.float32)) for name, one in placed.items()}


def resolve(tensors, **choices):
    return resolve_config(flax_facts(tensors), Choices(**choices), format_profile="flax")


def problems(tensors, **choices):
    with pytest.raises(ConversionError) as caught:
        resolve(tensors, **choices)
    return str(caught.value)


def test_shapes_and_the_named_rest_give_the_config():
    config = tiny_clip_config()
    text = dataclasses.replace(config.text, blocks=dataclasses.replace(config.text.blocks, init="scaled"))
    assert resolve(shapes_of(config), **FULL).config == dataclasses.replace(config, text=text)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("image_pool", "image.pool is not known (gap and tok have the same arrays); give --image-pool"),
        ("text_pool", "text.pool is not known (last, tok and gap have the same arrays); give --text-pool"),
        ("image_position", "give --image-position"),
        ("image_size", "image.image_size is not known (shapes do not determine it); give --image-size"),
    ],
)
def test_a_field_that_shapes_do_not_determine_needs_its_flag(missing, message):
    assert message in problems(shapes_of(tiny_clip_config()), **{k: v for k, v in FULL.items() if k != missing})


def test_heads_of_flat_attention_must_be_named():
    tensors = shapes_of(tiny_clip_config(), FlaxLayout(attention="flat"))
    said = problems(tensors, **FULL)
    assert "give --image-heads" in said
    assert "give --text-heads" in said
    config = resolve(tensors, **FULL, image_heads=2, text_heads=4).config
    assert (config.image.blocks.heads, config.text.blocks.heads) == (2, 4)


def test_pools_with_their_own_arrays_need_no_flag():
    for pool in ("map", "first"):
        tensors = shapes_of(tiny_clip_config(image={"pool": pool}))
        choices = {k: v for k, v in FULL.items() if k != "image_pool"}
        assert resolve(tensors, **choices).config.image.pool == pool
        assert f"image.pool: gap from --image-pool, but the file has {pool}" in problems(tensors, **FULL)


def test_learned_positions_determine_the_size_of_square_images_only():
    learned = {"image_pool": "tok", "text_pool": "last"}
    config = tiny_clip_config(image={"position": "learned", "pool": "tok"})
    resolved = resolve(shapes_of(config), **learned)
    assert resolved.config.image.image_size == (16, 16)
    why = "5 rows of img/pos_embedding as class token and a square of 2"
    note = f"image.image_size: (16, 16) from the file ({why}); use --image-size or --config for another value"
    assert note in resolved.notes
    wide = tiny_clip_config(image={"position": "learned", "pool": "tok", "image_size": (8, 16)})
    assert "image.image_size is not known" in problems(shapes_of(wide), **learned)


def test_an_absurd_image_size_is_refused_before_memory_is_allocated():
    said = problems(shapes_of(tiny_clip_config()), **(FULL | {"image_size": 100_000_000}))
    assert "image.image_size: (100000000, 100000000) from --image-size, but the longest supported side has 4096" in said


def test_a_preset_is_checked_and_every_difference_named():
    tensors = shapes_of(preset("L/14", length=8))
    resolved = resolve(tensors, preset="L/14", image_size=84)
    assert resolved.config == preset("L/14", length=8, image_size=84)
    assert any(note.startswith("text.length: 8 from the file") for note in resolved.notes)
    resolved = resolve(shapes_of(preset("L/14")), preset="L/14")
    assert any(
        note == "image.image_size: (224, 224), the default of preset L/14; use --image-size for another value"
        for note in resolved.notes
    )
    said = problems(tensors, preset="H/14", image_size=84)
    for name in ("image.blocks.width: 1024", "image.blocks.depth: 24", "text.blocks.width: 768", "image.embed: 768"):
        assert name in said


def test_a_preset_does_not_determine_the_image_size_for_another_text_length():
    said = problems(shapes_of(preset("H/14", image_size=84, length=8)), preset="H/14")
    assert (
        "image.image_size is not known (shapes do not determine it; preset H/14 has 224 with 32 text tokens, this file"
        in said
    )
    assert "this file has 8); give --image-size" in said


@pytest.mark.parametrize("name", PRESETS)
def test_only_presets_with_released_models_determine_the_pool(name):
    config, known = preset(name), {row.preset for row in RELEASED.values()}
    for pool in ("tok", "gap"):
        resolved = resolve(shapes_of(config), preset=name, image_pool=pool)
        assert resolved.config.image.pool == pool
    if name in known:
        assert resolve(shapes_of(config), preset=name).config.image.pool == "gap"
    else:
        said = problems(shapes_of(config), preset=name)
        assert f"image.pool is not known (gap and tok have the same arrays; no model of preset {name} was" in said
        assert "give --image-pool" in said
    probed = dataclasses.replace(config, image=dataclasses.replace(config.image, pool="map"))
    if name in known:
        assert "image.pool: map from the file" in problems(shapes_of(probed), preset=name)
    else:
        assert resolve(shapes_of(probed), preset=name).config.image.pool == "map"


def test_a_default_image_preparation_is_reported_as_a_default():
    resolved = resolve(shapes_of(tiny_clip_config()), **FULL)
    assert resolved.preprocess.resize == "squash"
    assert "preprocess: squash, a default that no file determines" in resolved.preprocess_note
    assert "resize_small_crop" in resolved.preprocess_note
    name = "h14-84px-t8-laion2b"
    resolved = resolve(shapes_of(RELEASED[name].config()), released=name)
    assert resolved.preprocess_note == f"preprocess: resize_small_crop, as released model {name} was scored"


@pytest.mark.parametrize(
    ("name", "reduction"), [("h14-84px-t8-laion2b", "syntax"), ("h14-224px-t32-laion2b", "truncate"), (None, None)]
)
def test_a_released_model_is_scored_with_the_prompts_of_its_published_score(name, reduction):
    chosen = {"released": name} if name else FULL
    resolved = resolve(shapes_of(RELEASED[name].config() if name else tiny_clip_config()), **chosen)
    provenance = import_provenance(resolved, tiny_tokenizer(), format="flax npz", layout={}, origin=None)
    assert resolved.prompt_reduction == provenance.text_reduction == reduction


@pytest.mark.parametrize(
    ("format_profile", "name", "twin"),
    [
        ("flax", "l14-224px-t32-datacomp1b-open-clip", "--released l14-224px-t32-datacomp1b, "),
        ("open_clip", "l14-224px-t32-datacomp1b", "--released l14-224px-t32-datacomp1b-open-clip, "),
        ("open_clip", "h14-84px-t8-laion2b", "the row of this format, "),
    ],
)
def test_a_released_model_of_another_format_needs_its_numerics_named(format_profile, name, twin):
    row = RELEASED[name]
    facts = flax_facts(shapes_of(row.config()))
    with pytest.raises(ConversionError) as caught:
        resolve_config(facts, Choices(released=name), format_profile=format_profile)
    assert f"released model {name} is a file of {row.profile}, this is one of {format_profile}" in str(caught.value)
    assert f"use {twin}or name the numerics of these weights with --profile" in str(caught.value)
    for profile in PROFILES:
        resolved = resolve_config(facts, Choices(released=name, profile=profile), format_profile=format_profile)
        assert (resolved.profile, resolved.profile_why) == (profile, "--profile says so")


def test_flags_win_over_the_default_of_a_preset_and_are_noted():
    resolved = resolve(shapes_of(preset("S/16")), preset="S/16", image_pool="tok", image_size=64)
    assert resolved.config.image.pool == "tok"
    assert resolved.config.image.image_size == (64, 64)
    assert "image.pool: tok from --image-pool, gap in preset S/16" in resolved.notes


def with_text(config, size):
    return dataclasses.replace(
        config, text=dataclasses.replace(config.text, blocks=dataclasses.replace(config.text.blocks, **size._asdict()))
    )


@pytest.mark.parametrize("table", TEXT_TABLES)
@pytest.mark.parametrize("layout", ["split", "flat"])
def test_text_towers_of_all_three_tables_are_recognized(table, layout):
    for letter, size in TEXT_TABLES[table].items():
        if letter not in ("L", "H", "g", "G"):
            continue
        name = {"L": "L/14", "H": "H/14", "g": "g/14", "G": "bigG/14"}[letter]
        config = with_text(preset(name), size)
        resolved = resolve(shapes_of(config, FlaxLayout(attention=layout)), preset=name, image_pool="gap")
        assert resolved.config.text == config.text
        is_presets = config == preset(name)
        assert is_presets != any("the text tower is that of the reference's" in note for note in resolved.notes)


def test_the_released_bigg_has_the_text_tower_of_the_pjit_trainer():
    blocks = resolve(shapes_of(preset("bigG/14"), FlaxLayout(attention="flat")), preset="bigG/14").config.text.blocks
    assert (blocks.width, blocks.depth, blocks.mlp_dim, blocks.heads) == T5X_TEXT


def test_profiles_say_why():
    tensors = shapes_of(tiny_clip_config())
    resolved = resolve(tensors, **FULL)
    assert (resolved.config.image.blocks.norm_eps, resolved.config.text.blocks.gelu) == (1e-6, "tanh")
    assert (resolved.profile, "written by flax code" in resolved.profile_why) == ("flax", True)
    resolved = resolve(tensors, **FULL, profile="open_clip")
    assert (resolved.config.image.blocks.norm_eps, resolved.config.text.blocks.gelu) == (1e-5, "exact")
    assert resolved.profile_why == "--profile says so"
    with pytest.raises(ConversionError, match="numerics profile is not known"):
        resolve_config(flax_facts(tensors), Choices(**FULL), format_profile=None)


def test_a_config_file_is_used_completely_and_checked(tmp_path):
    config = tiny_clip_config(
        image={"image_size": (8, 16), "pool": "tok", "mask_ratio": 0.25}, text={"position": "sincos1d", "pool": "gap"}
    )
    for found in (to_json(config), {"schema": 1, "model": to_json(config)}, {"config": {"model": to_json(config)}}):
        (tmp_path / "config.json").write_text(json.dumps(found))
        resolved = resolve(shapes_of(config), config=tmp_path / "config.json")
        assert resolved.config == config
        assert resolved.profile == "flax"
        assert resolved.preprocess.size == (8, 16)
    other = shapes_of(tiny_clip_config(text={"length": 9}))
    del other["txt/head/kernel"]
    said = problems(other, config=tmp_path / "config.json")
    assert "text.position: learned from the file (txt/pos_embedding exists), sincos1d in" in said
    assert "text.embed: None from the file" in said


@pytest.mark.usefixtures("quick_compile")
def test_the_output_of_show_is_a_config_file(tmp_path, capsys):
    parts = {"tokenizer": tiny_tokenizer(), "preprocess": EvalImageConfig(size=(16, 16)), "provenance": {"a": "b"}}
    folder = save_model(tmp_path / "model", tiny_clip(), **parts)
    show([str(folder)])
    (tmp_path / "F.json").write_text(capsys.readouterr().out)
    assert resolve(shapes_of(tiny_clip_config()), config=tmp_path / "F.json").config == tiny_clip_config()


DEEP = "[" * 200_000, '{"image":' * 100_000


@pytest.mark.parametrize("content", ["", "{", "[]", '{"image": 1}', "null", *DEEP], ids=lambda text: text[:12])
def test_a_file_that_is_not_a_config_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"--config .*config.json"):
        resolve(shapes_of(tiny_clip_config()), config=tmp_path / "config.json")


def test_two_named_configs_are_refused():
    assert "give one of them" in problems(shapes_of(tiny_clip_config()), preset="H/14", released="x")


@pytest.mark.parametrize("name", [name for name, row in RELEASED.items() if row.profile == "flax"])
def test_a_released_name_gives_everything(name):
    row = RELEASED[name]
    tensors = shapes_of(row.config())
    assert sum(math.prod(info.shape) for info in tensors.values()) == row.parameters
    for layout in ("split", "flat"):
        resolved = resolve(shapes_of(row.config(), FlaxLayout(attention=layout)), released=name)
        assert resolved.config == row.config()
        assert resolved.preprocess == row.preprocess()
        assert (resolved.profile, resolved.profile_why) == ("flax", f"released model {name} was published with it")
    assert "text.length: 9 from the file" in problems(shapes_of(with_length(row.config(), 9)), released=name)


def test_an_unknown_released_name_is_refused():
    assert f"no released model is called 'h15'; `{command_line('released')}` lists them" in problems(
        shapes_of(tiny_clip_config()), released="h15"
    )


def with_length(config, length):
    return dataclasses.replace(config, text=dataclasses.replace(config.text, length=length))
