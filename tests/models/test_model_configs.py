"""Configs of models: impossible sizes are refused by field, and derived sizes are right at their edges."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import tiny_clip_config

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.embed import kept_tokens
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig

BLOCKS = BlockConfig(width=8, depth=1, mlp_dim=4, heads=2)


def blocks(**fields):
    return dataclasses.replace(BLOCKS, **fields)


def image(**fields):
    return VisionConfig(**{"blocks": BLOCKS, "image_size": (8, 8), "patch_size": (4, 4), "embed": 4, **fields})


def text(**fields):
    return TextConfig(**{"blocks": BLOCKS, "length": 4, "vocab": 9, "embed": 4, **fields})


REFUSED = {
    "no width": (lambda: blocks(width=0), "BlockConfig.width is 0; it must be at least 1"),
    "no depth": (lambda: blocks(depth=0), "BlockConfig.depth is 0"),
    "negative hidden width": (lambda: blocks(mlp_dim=-4), "BlockConfig.mlp_dim is -4"),
    "no heads": (lambda: blocks(heads=0), "BlockConfig.heads is 0"),
    "heads that do not divide": (lambda: blocks(heads=3), "heads=3 does not divide width=8"),
    "all dropped": (lambda: blocks(dropout=1.0), r"dropout is 1.0; it must be in \[0, 1\)"),
    "negative drop path": (lambda: blocks(drop_path=-0.1), "drop_path is -0.1"),
    "drop path that is no number": (lambda: blocks(drop_path=math.nan), "drop_path is nan"),
    "height off the patches": (lambda: image(image_size=(9, 8)), "image height 9 is not a positive multiple of .* 4"),
    "width off the patches": (lambda: image(patch_size=(4, 3)), "image width 8 is not a positive multiple of .* 3"),
    "no pixels": (lambda: image(image_size=(0, 8)), "image height 0"),
    "no patch": (lambda: image(patch_size=(4, 0)), "patch width 0"),
    "a patch larger than the image": (lambda: image(patch_size=(16, 4)), "patch height 16"),
    "a width without sin-cos": (lambda: image(blocks=blocks(width=6)), r"divisible by 4 \(>= 8\), got 6"),
    "a width of 4": (lambda: image(blocks=blocks(width=4)), r"divisible by 4 \(>= 8\), got 4"),
    "everything masked": (lambda: image(mask_ratio=1.0), r"mask_ratio is 1.0; it must be in \[0, 1\)"),
    "a negative mask": (lambda: image(mask_ratio=-0.5), "mask_ratio is -0.5"),
    "no token left": (lambda: image(mask_ratio=0.8), "mask_ratio=0.8 leaves no token of 4"),
    "no text": (lambda: text(length=0), "TextConfig.length is 0; pool='last' needs at least 1"),
    "only [CLS] for a mean": (lambda: text(length=1, pool="gap"), "pool='gap' needs at least 2"),
    "no vocabulary": (lambda: text(vocab=0), "TextConfig.vocab is 0"),
    "odd width": (lambda: text(blocks=blocks(width=7, heads=1), position="sincos1d"), r"even width \(>= 4\), got 7"),
    "a width of 2": (lambda: text(blocks=blocks(width=2), position="sincos1d"), r"even width \(>= 4\), got 2"),
    "joint widths that differ": (
        lambda: CLIPConfig(image=image(embed=4), text=text(embed=5)),
        "the image tower has output width 4, the text tower 5",
    ),
    "a head on one tower": (
        lambda: CLIPConfig(image=image(embed=None), text=text()),
        "output width 8, the text tower 4",
    ),
    "no temperature": (lambda: CLIPConfig(image=image(), text=text(), temperature=0.0), "temperature is 0.0"),
    "a temperature that is no number": (
        lambda: CLIPConfig(image=image(), text=text(), temperature=math.nan),
        "temperature is nan; it must be positive",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_size_is_refused_by_field(case):
    make, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: blocks(dropout=0.999, drop_path=0.999),
        lambda: image(patch_size=(8, 8)),
        lambda: image(mask_ratio=0.75),
        lambda: image(position="learned", blocks=blocks(width=6)),
        lambda: text(length=1),
        lambda: text(length=2, pool="gap"),
        lambda: text(blocks=blocks(width=4), position="sincos1d"),
        lambda: CLIPConfig(image=image(embed=None), text=text(embed=None)),
    ],
)
def test_the_smallest_possible_sizes_are_allowed(make):
    make()


@settings(deadline=None)
@given(
    patch=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ratio=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
)
def test_patches_fill_the_image_and_masking_keeps_their_share(patch, grid, ratio):
    size = (patch[0] * grid[0], patch[1] * grid[1])
    if ratio and int(grid[0] * grid[1] * (1 - ratio)) < 1:
        with pytest.raises(ConfigError, match="leaves no token"):
            image(image_size=size, patch_size=patch, mask_ratio=ratio)
        return
    config = image(image_size=size, patch_size=patch, mask_ratio=ratio)
    assert (config.grid, config.patches) == (grid, grid[0] * grid[1])
    kept = config.visible - 1
    assert kept == int(config.patches * (1 - ratio))
    assert abs(kept - config.patches * (1 - ratio)) < 1


@pytest.mark.parametrize(("tokens", "ratio", "kept"), [(196, 0.75, 49), (49, 0.5, 24), (10, 0.9, 0), (3, 0.1, 2)])
def test_kept_tokens_are_truncated_not_rounded(tokens, ratio, kept):
    assert kept_tokens(tokens, ratio) == kept


def test_the_output_is_the_joint_width_or_that_of_the_tower():
    assert (image().output, image(embed=None).output) == (4, 8)
    assert (text().output, text(embed=None).output) == (4, 8)


def test_equal_configs_are_one_key_of_a_cache():
    assert hash(tiny_clip_config()) == hash(tiny_clip_config())
    assert len({tiny_clip_config(), tiny_clip_config(), tiny_clip_config(image={"pool": "tok"})}) == 2
