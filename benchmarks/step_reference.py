"""The reference's step on the JAX of this environment, to compare ours with (``step.py`` starts it).

Like CLIPA's (docs/reference.md F1.0): the blocks of a tower are separate parameters, run one after the other in Python,
kernels are (in, out), everything is kept for the backward pass, and optax's Adam with decoupled decay of kernels makes
the update. Metrics are the loss only. A line of input asks for a step.
"""

import argparse
import functools
import resource
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.embed import sincos_2d
from clipa_eqx.models.presets import preset

Params = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    options = parser.parse_args()
    config = preset(options.preset, image_size=options.image_size, length=options.length)
    params = init(config, np.random.default_rng(0))
    is_kernel = jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in jax.tree_util.keystr(path), params)
    optimizer: Any = optax.adamw(1e-4, b1=0.9, b2=0.95, weight_decay=0.2, mask=is_kernel)
    state = jax.jit(optimizer.init)(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, state: Any, images: Array, tokens: Array) -> tuple[Params, Any, Array]:
        loss, grads = jax.value_and_grad(lambda p: loss_of(p, images, tokens, config))(params)
        updates, state = optimizer.update(grads, state, params)
        changed: Any = optax.apply_updates(params, updates)
        return changed, state, loss

    images = jr.normal(jr.key(1), (options.batch, options.image_size, options.image_size, 3))
    tokens = jr.randint(jr.key(2), (options.batch, options.length), 0, config.text.vocab)
    compiled = step.lower(params, state, images, tokens).compile()
    print(f"ready jax {jax.__version__}", flush=True)
    for _ in sys.stdin:
        since = time.perf_counter()
        params, state, loss = compiled(params, state, images, tokens)
        jax.block_until_ready((params, state, loss))
        print(time.perf_counter() - since, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, flush=True)


def init(config: CLIPConfig, rng: np.random.Generator) -> Params:
    """Random parameters of the reference's tree; their values do not matter here."""

    def dense(fan_in: int, fan_out: int) -> Params:
        kernel = (rng.standard_normal((fan_in, fan_out)) * fan_in**-0.5).astype(np.float32)
        return {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(fan_out)}

    def norm(width: int) -> Params:
        return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}

    def tower(blocks: BlockConfig) -> list[Params]:
        width, hidden = blocks.width, blocks.mlp_dim
        return [
            {
                "norm1": norm(width),
                **{name: dense(width, width) for name in ("query", "key", "value", "out")},
                "norm2": norm(width),
                "fc_in": dense(width, hidden),
                "fc_out": dense(hidden, width),
            }
            for _ in range(blocks.depth)
        ]

    image, text = config.image.blocks, config.text.blocks
    pixels = 3 * config.image.patch_size[0] * config.image.patch_size[1]
    return {
        "image": {
            "patch": dense(pixels, image.width),
            "class_token": jnp.zeros(image.width),
            "blocks": tower(image),
            "norm": norm(image.width),
            "head": dense(image.width, config.image.output),
        },
        "text": {
            "table": jnp.asarray(0.02 * rng.standard_normal((config.text.vocab, text.width)), jnp.float32),
            "position": jnp.zeros((config.text.length, text.width)),
            "blocks": tower(text),
            "norm": norm(text.width),
            "head": dense(text.width, config.text.output),
        },
        "log_temperature": jnp.asarray(np.log(1 / 0.07), jnp.float32),
    }


def loss_of(
    params: Params,
    images: Float[Array, "batch height width 3"],
    tokens: Int[Array, "batch length"],
    config: CLIPConfig,
) -> Float[Array, ""]:
    """The softmax loss of a batch over all its pairs."""
    image = embed_images(params["image"], images, config)
    text = embed_texts(params["text"], tokens, config)
    image, text = (z / (jnp.linalg.norm(z, axis=1, keepdims=True) + 1e-8) for z in (image, text))
    logits = jnp.exp(params["log_temperature"]) * image @ text.T
    rows = jnp.diagonal(jax.nn.log_softmax(logits, axis=1)) + jnp.diagonal(jax.nn.log_softmax(logits, axis=0))
    return -jnp.mean(rows) / 2


def embed_images(params: Params, images: Float[Array, "batch height width 3"], config: CLIPConfig) -> Array:
    """Class token, patches, computed positions, blocks, mean of the patches, norm, head."""
    (down, across), (height, width) = config.image.grid, config.image.patch_size
    batch = images.shape[0]
    patches = images.reshape(batch, down, height, across, width, 3).transpose(0, 1, 3, 2, 4, 5)
    x = linear(params["patch"], patches.reshape(batch, down * across, -1))
    x = x + jnp.asarray(sincos_2d(down, across, config.image.blocks.width), jnp.float32)
    token = jnp.broadcast_to(params["class_token"], (batch, 1, x.shape[-1]))
    x = run_blocks(params["blocks"], jnp.concatenate([token, x], axis=1), config.image.blocks)
    return linear(params["head"], layer_norm(params["norm"], jnp.mean(x[:, 1:], axis=1)))


def embed_texts(params: Params, tokens: Int[Array, "batch length"], config: CLIPConfig) -> Array:
    """Token table, positions, blocks without a mask, norm, the last token, head."""
    x = params["table"][tokens] + params["position"]
    x = layer_norm(params["norm"], run_blocks(params["blocks"], x, config.text.blocks))
    return linear(params["head"], x[:, -1])


def run_blocks(blocks: list[Params], x: Float[Array, "batch seq dim"], config: BlockConfig) -> Array:
    """The blocks, one after the other."""
    for block in blocks:
        y = layer_norm(block["norm1"], x)
        q, k, v = (linear(block[name], y).reshape(*y.shape[:2], config.heads, -1) for name in ("query", "key", "value"))
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q / q.shape[-1] ** 0.5, k), axis=-1)
        x = x + linear(block["out"], jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))
        y = layer_norm(block["norm2"], x)
        x = x + linear(block["fc_out"], jax.nn.gelu(linear(block["fc_in"], y)))
    return x


def linear(params: Params, x: Array) -> Array:
    """Flax's Dense."""
    return x @ params["kernel"] + params["bias"]


def layer_norm(params: Params, x: Array) -> Array:
    """Flax's LayerNorm: the variance is the mean of squares minus the square of the mean."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.maximum(0.0, jnp.mean(jnp.square(x), axis=-1, keepdims=True) - jnp.square(mean))
    return (x - mean) * (jax.lax.rsqrt(variance + 1e-6) * params["scale"]) + params["bias"]


if __name__ == "__main__":
    main()
