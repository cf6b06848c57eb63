"""Numbers that an exported open_clip config must carry exactly: the hidden width as a ratio, epsilon and GELU."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import tiny_clip_config

from clipa_eqx.errors import ConversionError
from conversion.open_clip.mapping import from_clip_config, numerics_in, numerics_metadata
from conversion.weights.numerics import numerics_of


@settings(deadline=None)
@given(width=st.integers(2, 200).map(lambda n: 4 * n), hidden=st.integers(1, 4000))
def test_the_hidden_width_survives_open_clips_rounding(width, hidden):
    config = tiny_clip_config(blocks={"width": width, "heads": 1, "mlp_dim": hidden})
    made = from_clip_config(config, resize="squash")["model_cfg"]
    for tower in ("vision_cfg", "text_cfg"):
        assert int(width * made[tower]["mlp_ratio"]) == hidden


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 3e-7])
@pytest.mark.parametrize("gelu", ["tanh", "exact"])
def test_only_numerics_other_than_open_clips_are_stated(eps, gelu):
    made = from_clip_config(tiny_clip_config(blocks={"norm_eps": eps, "gelu": gelu}), resize="squash")["model_cfg"]
    for tower in (made["vision_cfg"], made["text_cfg"]):
        assert tower.get("norm_kwargs", {"eps": 1e-5}) == {"eps": eps}
        assert tower.get("act_kwargs") == ({"approximate": "tanh"} if gelu == "tanh" else None)


@pytest.mark.parametrize(("size", "shown"), [((16, 16), 16), ((16, 32), [16, 32])])
def test_a_square_is_one_number_and_another_size_is_height_and_width(size, shown):
    made = from_clip_config(tiny_clip_config(image={"image_size": size}), resize="squash")
    assert made["model_cfg"]["vision_cfg"]["image_size"] == made["preprocess_cfg"]["size"] == shown


@pytest.mark.parametrize("blocks", [{}, {"norm_eps": 1e-5, "gelu": "exact"}, {"norm_eps": 0.3}])
def test_numerics_in_metadata_come_back(blocks):
    config = tiny_clip_config(blocks=blocks)
    assert numerics_in(numerics_metadata(config), where="x") == numerics_of(config)
    assert numerics_in({"format": "pt"}, where="x") is None


[KEY] = numerics_metadata(tiny_clip_config())
GOOD = json.loads(numerics_metadata(tiny_clip_config())[KEY])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        json.dumps({"image": GOOD["image"]}),
        json.dumps(GOOD | {"text": {"norm_eps": 1e-5}}),
        json.dumps(GOOD | {"text": {"norm_eps": 0.0, "gelu": "tanh"}}),
        json.dumps(GOOD | {"text": {"norm_eps": 1.0, "gelu": "tanh"}}),
        json.dumps(GOOD | {"text": {"norm_eps": "1e-5", "gelu": "tanh"}}),
        json.dumps(GOOD | {"text": {"norm_eps": True, "gelu": "tanh"}}),
        json.dumps(GOOD | {"text": {"norm_eps": 1e-5, "gelu": "quick"}}),
        json.dumps(GOOD | {"text": {"norm_eps": 1e-5, "gelu": ["tanh"]}}),
        json.dumps(GOOD | {"text": {"norm_eps": float("nan"), "gelu": "tanh"}}),
    ],
)
def test_other_metadata_under_our_name_are_refused(text):
    with pytest.raises(ConversionError, match=r"^the file: metadata .* expected norm_eps and gelu of image and text"):
        numerics_in({KEY: text}, where="the file")
