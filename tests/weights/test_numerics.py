"""Numerics profiles: their names, their JSON in provenance, and their place in a config."""

import pytest
from support.tiny_models import tiny_clip_config

from conversion.weights.numerics import PROFILES, Numerics, TowerNumerics, numerics_of, with_numerics


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_is_recognized_in_the_config_that_has_it(profile):
    numerics = TowerNumerics(PROFILES[profile], PROFILES[profile])
    config = with_numerics(tiny_clip_config(), numerics)
    assert numerics_of(config) == numerics
    assert numerics_of(config).profile == profile
    assert config.image.blocks.width == tiny_clip_config().image.blocks.width


def test_towers_that_differ_or_have_other_numbers_are_custom():
    assert TowerNumerics(PROFILES["flax"], PROFILES["open_clip"]).profile == "custom"
    odd = Numerics(1e-7, "tanh")
    assert TowerNumerics(odd, odd).profile == "custom"


def test_the_json_has_the_keys_of_version_0_1_0():
    numerics = TowerNumerics(Numerics(1e-6, "tanh"), Numerics(1e-5, "exact"))
    assert numerics.to_json() == {
        "image": {"norm_eps": 1e-6, "gelu": "tanh"},
        "text": {"norm_eps": 1e-5, "gelu": "exact"},
    }
