"""Configs by name and from files, and the tables in which a text tower is looked up."""

import json
from pathlib import Path

import pytest
from support.tiny_models import tiny_clip_config

from clipa_eqx.errors import ConfigError, ConversionError
from clipa_eqx.json_config import to_json
from clipa_eqx.models.presets import PRESETS, T5X_TEXT, VARIANTS, Size, preset
from conversion.weights.facts import Fact, square_side
from conversion.weights.named_configs import check_format, named_config
from conversion.weights.released import RELEASED
from conversion.weights.text_tables import TEXT_SIZES, TEXT_TABLES, matching_text_rows, other_text_row
from conversion.weights.tower_options import image_options, text_options


def of_file(path):
    return named_config(preset=None, released=None, file=path)


def test_without_a_name_there_is_no_config():
    assert named_config(preset=None, released=None, file=None) is None


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_leaves_size_and_length_free_and_knows_its_row(name):
    found = named_config(preset=name, released=None, file=None)
    assert found is not None
    assert (found.config, found.free) == (preset(name), ("image.image_size", "text.length"))
    assert found.letter in VARIANTS
    assert not found.is_file


@pytest.mark.parametrize(
    "given",
    [{"preset": "B/16", "released": "x"}, {"preset": "B/16", "file": Path("f")}, {"released": "x", "file": Path("f")}],
)
def test_two_names_are_refused_before_either_is_looked_up(given):
    words = " and ".join("--config" if name == "file" else f"--{name}" for name in given)
    with pytest.raises(ConversionError, match=f"{words} each name a complete config"):
        named_config(**({"preset": None, "released": None, "file": None} | given))


CONFIG = to_json(tiny_clip_config())


@pytest.mark.parametrize(
    "content",
    [CONFIG, {"schema": 1, "model": CONFIG}, {"config": {"model": CONFIG, "seed": 0}}, {"version": 1, "model": CONFIG}],
    ids=["alone", "model folder", "run folder", "of a run"],
)
@pytest.mark.parametrize("after", ["", "\n\nparameters, all: 3\n", " {}"])
def test_a_config_is_found_wherever_our_files_hold_it(content, after, tmp_path):
    (tmp_path / "f.json").write_text("\n " + json.dumps(content) + after)
    found = of_file(tmp_path / "f.json")
    assert found is not None
    assert (found.config, found.name, found.is_file) == (tiny_clip_config(), str(tmp_path / "f.json"), True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("3", "does not hold a model config"),
        ('{"model": [1]}', "does not hold a model config"),
        ('{"config": {"model": null}}', "does not hold a model config"),
    ],
)
def test_a_text_without_a_config_is_refused(text, words, tmp_path):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(ConversionError, match=words) as caught:
        of_file(tmp_path / "f.json")
    assert str(caught.value).startswith(f"--config {tmp_path / 'f.json'} ")


@pytest.mark.parametrize("content", [{}, {"image": {}}, CONFIG | {"audio": 1}])
def test_other_fields_than_those_of_a_config_are_named_with_the_file(content, tmp_path):
    (tmp_path / "f.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"--config .*f\.json"):
        of_file(tmp_path / "f.json")


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_model_fits_files_of_its_own_format_only(name):
    found = named_config(preset=None, released=name, file=None)
    assert found is not None
    own = RELEASED[name].profile
    check_format(found, own)
    with pytest.raises(ConversionError, match=f"is a file of {own}, this is one of"):
        check_format(found, "open_clip" if own == "flax" else "flax")


def test_presets_fit_files_of_any_format():
    for profile in ("flax", "open_clip"):
        check_format(named_config(preset="B/16", released=None, file=None), profile)


def facts(size, *, without=()):
    return {f"text.blocks.{name}": Fact((value,), "w") for name, value in size._asdict().items() if name not in without}


@pytest.mark.parametrize("table", TEXT_TABLES)
def test_every_row_is_found_by_its_own_sizes(table):
    for letter, size in TEXT_TABLES[table].items():
        names = [row.name for row in matching_text_rows(facts(size))]
        assert f"the reference's {table}, {letter}" in names


def test_unknown_heads_match_and_any_other_unknown_size_does_not():
    size = VARIANTS["B"].text
    assert [row.letter for row in matching_text_rows(facts(size, without=("heads",)))]
    for name in Size._fields:
        if name != "heads":
            assert matching_text_rows(facts(size, without=(name,))) == []
        assert matching_text_rows(facts(size._replace(**{name: 7}))) == []


def test_another_row_of_the_same_letter_is_offered_only_if_the_own_one_does_not_match():
    own = VARIANTS["G"].text
    assert other_text_row(facts(own), letter="G", own=own) is None
    found = other_text_row(facts(T5X_TEXT), letter="G", own=own)
    assert found is not None
    assert found.size == T5X_TEXT
    assert other_text_row(facts(T5X_TEXT), letter="B", own=VARIANTS["B"].text) is None


def test_rows_have_exactly_the_sizes_of_a_text_tower():
    assert set(TEXT_SIZES) == {f"text.blocks.{name}" for name in ("width", "depth", "mlp_dim", "heads")}


@pytest.mark.parametrize(("count", "side"), [(0, None), (1, 1), (2, None), (16, 4), (17, None), (10**12, 10**6)])
def test_only_squares_have_a_side(count, side):
    assert square_side(count) == side


@pytest.mark.parametrize(("pool", "norm"), [("gap", "after"), ("tok", "before"), ("first", "none"), ("map", "none")])
def test_the_options_of_a_tower_are_those_of_its_config(pool, norm):
    config = tiny_clip_config(image={"pool": pool}, text={"pool": "tok"}, blocks={"norm_eps": 1e-4, "gelu": "exact"})
    image, text = image_options(config.image), text_options(config.text)
    assert (image.pool, image.pool_norm) == (pool, norm)
    assert (text.pool, text.pool_norm) == ("tok", "before")
    for one in (image, text):
        assert (one.heads, one.eps, one.gelu, one.is_causal, one.has_class_in_mean) == (2, 1e-4, "exact", False, False)
