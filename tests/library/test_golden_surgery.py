"""Surgery between stages equals the reference's ``masked_init`` + ``merge_params``.

If the reference copied leaves of the wrong shape and failed later (``forward`` is an error), or raised (``outcome``),
ours must raise. One difference is deliberate: learned image positions are resampled as a grid with the class token
kept, not as one line of rows (``img/pos_embedding`` computed from learned ones). In these cases only the other leaves
are compared, and the forward is not.
"""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import goldens

from clipa_eqx.errors import CheckpointError
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIP, CLIPConfig
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig
from clipa_eqx.surgery import adopt, learn_image_position, resize_image
from conversion.flax_clipa.names import flax_rules, from_flax, to_flax

goldens.require("surgery")

MERGED_ATOL, EMBEDDING_ATOL = 1e-6, 1e-5
CASES = {
    name: case
    for name, case in goldens.load_json("surgery/meta.json").items()
    if isinstance(case, dict) and "outcome" in case
}


def config_of(case, stage) -> CLIPConfig:
    image, text = case["image"], case["text"]
    sizes = [
        BlockConfig(width=t["width"], depth=t["depth"], mlp_dim=t["mlp_dim"], heads=t["num_heads"])
        for t in (image, text)
    ]
    patch = image[f"{stage}_patch"]
    return CLIPConfig(
        image=VisionConfig(
            blocks=sizes[0],
            image_size=(case[stage]["res"],) * 2,
            patch_size=(patch, patch),
            position={"learn": "learned", "sincos2d": "sincos2d"}[image[f"{stage}_posemb"]],
            pool=image["pool_type"],
            embed=case["out_dim"],
        ),
        text=TextConfig(
            blocks=sizes[1],
            length=case[stage]["text_len"],
            vocab=text["vocab_size"],
            pool=text["pool_type"],
            embed=case["out_dim"],
        ),
    )


def read(name, config) -> CLIP:
    return from_flax(goldens.under(goldens.load_npz(f"surgery/{name}"), "params/"), config)


def merge(case) -> CLIP:
    """The case by our named surgeries; only leaves that the reference was configured not to load may differ."""
    source = read(case["pretrained_file"], config_of(case, "pre"))
    target = config_of(case, "new")
    fresh = read(case["init_file"], target)
    unloaded = {path for path, name in names(target).items() if any(re.fullmatch(p, name) for p in case["dont_load"])}
    initial = {path for path in unloaded if case.get("source", {}).get(names(target)[path]) == "init"}
    if "image/position" in unloaded and source.config.image.position == "sincos2d":
        source = learn_image_position(resize_image(source, image_size=target.image.image_size).model).model
    return adopt(
        source,
        target,
        fresh=fresh,
        resize_text="text/position" in unloaded,
        resize_image="image/position" in unloaded,
        keep_initial=tuple(map(re.escape, sorted(initial))),
    ).model


@eqx.filter_jit
def embeddings(model, image, text):
    return jax.vmap(model.encode_image)(image), jax.vmap(model.encode_text)(text)


def names(config) -> dict[str, str]:
    return {rule.path: rule.name for rule in flax_rules(config)}


def is_resampled_image(case) -> bool:
    computed = case.get("source", {}).get("img/pos_embedding") == "computed"
    return computed and case["image"]["pre_posemb"] == "learn"


def is_dropped_position(case) -> bool:
    """Configured not to load it, the reference dropped a learned table for a computed one; ours never drops a leaf."""
    return case["image"]["pre_posemb"] == "learn" and case["image"]["new_posemb"] != "learn"


def fails(case) -> bool:
    return case["outcome"] != "ok" or case["forward"] != "ok" or is_dropped_position(case)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not fails(case)])
def test_merged_leaves_are_the_references(name):
    case = CASES[name]
    merged = to_flax(merge(case))
    expected = goldens.under(goldens.load_npz(f"surgery/{case['merged_file']}"), "params/")
    assert merged.keys() == expected.keys()
    for leaf in expected:
        if leaf == "img/pos_embedding" and is_resampled_image(case):
            np.testing.assert_array_equal(
                merged[leaf][:, 0], read(case["pretrained_file"], config_of(case, "pre")).image.position[:1]
            )
        else:
            np.testing.assert_allclose(merged[leaf], expected[leaf], atol=MERGED_ATOL, rtol=0, err_msg=leaf)


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if not fails(case) and not is_resampled_image(case)]
)
def test_merged_models_embed_as_the_references(name):
    model, io = merge(CASES[name]), goldens.load_npz(f"surgery/forward_{name}.npz")
    image, text = embeddings(model, io["image"], io["text"])
    np.testing.assert_allclose(image, io["zimg"], atol=EMBEDDING_ATOL, rtol=0)
    np.testing.assert_allclose(text, io["ztxt"], atol=EMBEDDING_ATOL, rtol=0)
    np.testing.assert_allclose(jnp.exp(model.log_temperature), io["t"][0], rtol=1e-5)


def lines(values, new):
    """Linear interpolation of rows between half-pixel centers with clamped edges, for growing only."""
    at = (np.arange(new) + 0.5) * len(values) / new - 0.5
    return np.stack([np.interp(at, np.arange(len(values)), column) for column in np.asarray(values).T], axis=1)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if is_resampled_image(case)])
def test_learned_image_positions_are_resampled_as_a_grid_and_not_as_the_reference_does(name):
    case = CASES[name]
    source = read(case["pretrained_file"], config_of(case, "pre"))
    (rows, across), (down, right) = source.config.image.grid, config_of(case, "new").image.grid
    grid = np.asarray(source.image.position, np.float64)[1:].reshape(rows, across, -1)
    tall = np.stack([lines(grid[:, x], down) for x in range(across)], axis=1)
    expected = np.stack([lines(row, right) for row in tall]).reshape(down * right, -1)
    found = np.asarray(merge(case).image.position)[1:]
    np.testing.assert_allclose(found, expected, atol=MERGED_ATOL, rtol=0)
    theirs = goldens.under(goldens.load_npz(f"surgery/{case['merged_file']}"), "params/")["img/pos_embedding"]
    assert np.abs(found - theirs[0, 1:]).max() > 1e-3


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if fails(case)])
def test_what_failed_or_lost_a_leaf_is_refused(name):
    with pytest.raises(CheckpointError, match=r"/position"):
        merge(CASES[name])
