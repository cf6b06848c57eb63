"""Presets have the published parameter counts; unknown names and sizes are refused."""

import pytest
from support.parameter_counts import PARAMETERS

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.models.presets import PRESETS, VARIANTS, from_variant, preset
from clipa_eqx.trees import count_params

# Millions, as open_clip prints them; it counts positions of the image tower too.
OPEN_CLIP = {("L/14", 224): 414.21, ("L/14", 336): 414.54, ("H/14", 224): 968.24, ("H/14", 336): 968.64}


def test_each_preset_has_its_count_here():
    assert set(PRESETS) == set(PARAMETERS)


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts_are_the_published_ones(name):
    model = abstract_clip(preset(name))
    assert (count_params(model.image), count_params(model.text), count_params(model)) == PARAMETERS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_a_text_tower_of_8_tokens_lacks_24_positions_only(name):
    config = preset(name, image_size=96 if name.endswith(("16", "32")) else 84, length=8)
    model = abstract_clip(config)
    image, text, _ = PARAMETERS[name]
    assert (count_params(model.image), count_params(model.text)) == (image, text - 24 * config.text.blocks.width)


@pytest.mark.parametrize(("name", "size"), OPEN_CLIP)
def test_with_positions_counted_open_clip_agrees(name, size):
    config = preset(name, image_size=size)
    with_positions = count_params(abstract_clip(config)) + (config.image.patches + 1) * config.image.blocks.width
    assert f"{with_positions / 1e6:.2f}" == f"{OPEN_CLIP[name, size]:.2f}"


def test_the_text_tower_of_h_is_that_of_the_main_table_not_of_t5x():
    # The t5x branch lists an MLP of 3,072 for H/14; the released weights have the master's 4,096.
    slim = VARIANTS["H"]._replace(text=VARIANTS["H"].text._replace(mlp_dim=3072))
    config = from_variant(slim, patch_size=14, image_size=224, length=32)
    assert count_params(abstract_clip(config)) == 917_549_825
    assert preset("H/14").text.blocks.mlp_dim == 4096


def test_unknown_names_and_sizes_are_refused():
    with pytest.raises(ConfigError, match="bigG/14"):
        preset("H/15")
    with pytest.raises(ConfigError, match="multiple of patch"):
        preset("H/14", image_size=225)
