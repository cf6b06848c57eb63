"""Round trips of random configs: the rule table is its own inverse, and an export is the imported checkpoint."""

import json

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from support.flax_checkpoints import assert_same_arrays, convert, random_clip, write_npz
from support.leaves import assert_bit_equal

from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig
from clipa_eqx.saved.model import load_model
from conversion.flax_clipa.__main__ import main
from conversion.flax_clipa.names import from_flax, to_flax

pytestmark = pytest.mark.usefixtures("quick_compile")

sizes = st.integers(1, 3)


@st.composite
def configs(draw):
    def blocks():
        heads = draw(sizes)
        # Sin-cos positions need a width of at least 8, divisible by 4.
        return BlockConfig(width=8 * heads, depth=draw(sizes), mlp_dim=draw(st.integers(1, 9)), heads=heads)

    image, text = blocks(), blocks()
    embed = draw(st.integers(1, 5))
    patch = draw(st.sampled_from([(2, 2), (3, 3)]))
    side = draw(st.integers(1, 3)) * patch[0]
    kind = draw(st.sampled_from(["conv", "linear"]))
    return CLIPConfig(
        image=VisionConfig(
            blocks=image,
            image_size=(side, side if kind == "linear" else draw(sizes) * patch[0]),
            patch_size=patch,
            patch=kind,
            position=draw(st.sampled_from(["sincos2d", "learned"])),
            pool=draw(st.sampled_from(["gap", "tok", "first", "map"])),
            embed=None if image.width == embed else embed,
        ),
        text=TextConfig(
            blocks=text,
            length=draw(st.integers(2, 5)),
            vocab=draw(st.integers(64, 66)),
            position=draw(st.sampled_from(["learned", "sincos1d"])),
            pool=draw(st.sampled_from(["last", "tok", "gap"])),
            embed=embed,
        ),
    )


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs(), compressed=st.booleans())
def test_import_of_an_export_is_the_model(config, compressed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("round")
    model = random_clip(config)
    arrays = {f"params/{name}": array for name, array in to_flax(model).items()}
    convert(write_npz(folder / "x.npz", arrays, compressed=compressed), folder / "model", config=config)
    again = load_model(folder / "model").model
    assert again.config == config
    assert_bit_equal(again, model)
    assert json.loads((folder / "model" / "provenance.json").read_text())["format"] == "flax npz"
    main(["export", str(folder / "model"), str(folder / "back.npz")])
    assert_same_arrays(folder / "back.npz", arrays)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs())
def test_the_rule_table_is_its_own_inverse(config):
    model = random_clip(config)
    again = from_flax(to_flax(model), config)
    assert_bit_equal(again, model)
