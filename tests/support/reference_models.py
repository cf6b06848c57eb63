"""The reference's constructor arguments (as recorded in the golden json files) as our configurations."""

from typing import Any

from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig

REMAT = {None: "none", "none": "none", "minimal": "dots", "actcp": "full"}


def clip_config(model: dict[str, Any], *, image_size: tuple[int, int], length: int) -> CLIPConfig:
    """``model`` is the ``model`` entry of golden ``models/index.json`` or ``train/meta_*.json``."""
    image, text = model["image"], model["text"]
    out = model["out_dim"] if isinstance(model["out_dim"], list) else [model["out_dim"]] * 2
    return CLIPConfig(
        image=VisionConfig(
            blocks=_blocks(image, init="xavier"),
            image_size=image_size,
            patch_size=tuple(image["patch_size"]),
            patch="conv" if image.get("patch_embeding", "conv") == "conv" else "linear",
            position={"sincos2d": "sincos2d", "learn": "learned"}[image.get("posemb", "learn")],
            pool={"0": "first"}.get(image["pool_type"], image["pool_type"]),
            embed=out[0],
        ),
        text=TextConfig(
            blocks=_blocks(text, init="scaled"),
            length=length,
            vocab=text.get("vocab_size", 32000),
            position={"sincos1d": "sincos1d", "learn": "learned"}[text.get("posemb", "learn")],
            pool=text["pool_type"],
            embed=out[1],
        ),
        temperature=model["temperature_init"],
    )


def _blocks(tower: dict[str, Any], *, init: str) -> BlockConfig:
    return BlockConfig(
        width=tower["width"],
        depth=tower["depth"],
        mlp_dim=tower["mlp_dim"] or 4 * tower["width"],
        heads=tower["num_heads"],
        remat=REMAT[tower.get("remat_policy")],
        init=init,
        init_depth=12,
    )
