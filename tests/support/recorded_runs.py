"""Recorded models and training runs of the reference, as models and configs of this library."""

import re

from clipa_eqx.durations import Duration
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig
from clipa_eqx.optim import OptimConfig
from clipa_eqx.schedules import Cosine, Polynomial
from clipa_eqx.sharding import put_global_batch
from conversion.flax_clipa.names import flax_rules, from_flax
from support import goldens

# Image pooling by its name in the recordings' file names.
IMAGE_POOLS = {"gap": "gap", "tok": "tok", "map": "map", "cls0": "first"}


def load_model(file, prefix):
    """The arrays and the model of a file: pooling by its name, everything else by the arrays' names and shapes."""
    arrays = goldens.load_npz(file)
    params = goldens.under(arrays, prefix)
    kinds = re.sub(r".*/(forward|train5)_|\.npz", "", file).split("_")
    text_pool = next((kind for kind in kinds[1:] if kind in ("last", "tok", "gap")), "last")

    def blocks(tower):
        stem = f"{tower}/Transformer/encoderblock_"
        dim, heads, _ = params[f"{stem}0/MultiHeadDotProductAttention_0/query/kernel"].shape
        mlp = params[f"{stem}0/MlpBlock_0/Dense_0/kernel"].shape[1]
        depth = len({name.split("/")[2] for name in params if name.startswith(stem)})
        return BlockConfig(width=dim, depth=depth, mlp_dim=mlp, heads=heads)

    image_size = arrays["in_image_uint8"].shape[1:3]
    kernel = params["img/embedding/kernel"]
    patch = round((kernel.shape[0] / 3) ** 0.5) if kernel.ndim == 2 else kernel.shape[0]
    config = CLIPConfig(
        image=VisionConfig(
            blocks=blocks("img"),
            image_size=image_size,
            patch_size=(patch, patch),
            patch="linear" if kernel.ndim == 2 else "conv",
            position="learned" if "img/pos_embedding" in params else "sincos2d",
            pool=IMAGE_POOLS[kinds[0]],
            embed=params["img/head/kernel"].shape[1],
        ),
        text=TextConfig(
            blocks=blocks("txt"),
            length=arrays["in_tokens"].shape[1],
            vocab=params["txt/Embed_0/embedding"].shape[0],
            position="learned" if "txt/pos_embedding" in params else "sincos1d",
            pool=text_pool,
            embed=params["txt/head/kernel"].shape[1],
        ),
    )
    return arrays, from_flax(params, config)


METAS = {int(re.findall(r"\d+", name)[0]): goldens.load_json(name) for name in goldens.names("train/meta_*dev.json")}


META = METAS[min(METAS)]


# Attention key biases have no gradient in exact arithmetic: Adam turns rounding noise into steps of up to lr each.
NOISE = "key/bias"


def load_batch(step, mesh):
    batches = goldens.load_npz("train/batches.npz")
    return put_global_batch({"image": batches[f"image_{step}"], "tokens": batches[f"labels_{step}"]}, mesh)


def reference_optimizer(config, model_config):
    """The optimizer of a recorded run: the reference's patterns become one rule for each leaf."""
    names = {rule.path: rule.name.format(i=0) for rule in flax_rules(model_config)}

    def first(patterns, name, default):
        return next((value for pattern, value in patterns if re.fullmatch(pattern, name)), default)

    def rules(patterns, default=None):
        return tuple((re.escape(path), first(patterns, name, default)) for path, name in names.items())

    schedules = [(pattern, as_schedule(entry)) for pattern, entry in config["schedule"]]
    return OptimConfig(
        peak_lr=config["lr"],
        weight_decay=config["wd"],
        decay=rules(config.get("wd_mults", [[".*/kernel$", 1.0]]), 0.0),
        lr_factors=rules(config.get("lr_mults", [[".*", 1.0]])),
        schedules=rules(schedules),
        b1=config["optax"]["b1"],
        b2=config["optax"]["b2"],
        mu_dtype=config["optax"]["mu_dtype"],
        clip_norm=config.get("grad_clip_norm"),
    )


def as_schedule(entry):
    if entry is None:
        return None
    warmup = Duration(steps=entry["warmup_steps"])
    if entry["decay_type"] == "linear":
        return Polynomial(warmup=warmup)
    assert entry["decay_type"] == "cosine"
    return Cosine(warmup=warmup, min_ratio=entry["min_lr"] / entry["max_lr"] if entry["min_lr"] else 0.0)


def bare(name):
    return name.removeprefix("params/")
