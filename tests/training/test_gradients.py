"""Every way to compute loss and gradients of a batch equals one naive function: losses, micro-batches, meshes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import Mesh
from support import tiny_runs
from support.naive_losses import naive_sigmoid, naive_softmax
from support.tiny_models import tiny_clip_config

from clipa_eqx.device_memory import memory_of
from clipa_eqx.errors import ConfigError, ShardingError
from clipa_eqx.losses.config import LossConfig
from clipa_eqx.models.clip import CLIP, abstract_clip
from clipa_eqx.precision import Precision
from clipa_eqx.sharding import MeshConfig, batch_sharding, make_mesh, shardings_for
from clipa_eqx.training.gradients import batch_gradients, batch_rows, embed_rows
from clipa_eqx.trees import leaves_by_path

pytestmark = pytest.mark.usefixtures("quick_compile")

BATCH = 48
KEY = jr.key(3)
ALGORITHMS = ("global", "sharded", "chunked", "ring")
MESHES = {"1": (1, 1, 1), "8x1x1": (8, 1, 1), "1x8x1": (1, 8, 1), "2x2x2": (2, 2, 2), "1x1x4": (1, 1, 4)}
# On 8 devices, 16 are 2 rows of the 6 of each device, and 32 are 4, so that the second micro-batch has 2.
MICRO = {"plain": None, "cached": 16, "uneven": 32}
TOLERANCE = 1e-5  # of each leaf's largest value, in float32


@functools.cache
def model(kind) -> CLIP:
    """A tiny model with masking, dropout and drop path on."""
    bias = {"bias": -2.0} if kind == "sigmoid" else {}
    return CLIP.init(tiny_clip_config(**tiny_runs.STOCHASTIC, **bias), key=jr.key(0))


@functools.cache
def batch():
    images = jr.randint(jr.key(1), (BATCH, *tiny_runs.SIZE, 3), 0, 256).astype(np.uint8)
    return images, jr.randint(jr.key(2), (BATCH, tiny_runs.LENGTH), 0, tiny_runs.VOCAB)


@functools.cache
def naive(kind):
    """Loss and gradients by the definition: all embeddings, unit length, all logits."""
    rows = batch_rows(*batch(), key=KEY)

    def loss(model):
        image, text = (
            z / jnp.linalg.norm(z, axis=1, keepdims=True) for z in embed_rows(model, rows, precision=Precision())
        )
        if kind == "softmax":
            return jnp.mean(naive_softmax(image, text, model.log_temperature))
        return jnp.mean(naive_sigmoid(image, text, model.log_temperature, model.bias))

    value, grads = jax.jit(jax.value_and_grad(loss))(model(kind))
    return float(value), {path: np.asarray(leaf) for path, leaf in leaves_by_path(grads).items()}


@functools.cache
def mesh_of_run(name) -> Mesh:
    sizes = MESHES[name]
    return make_mesh(MeshConfig(data=sizes[0], fsdp=sizes[1], tensor=sizes[2]), devices=jax.devices()[: np.prod(sizes)])


def compiled(kind, algorithm, micro_batch, mesh, *, images, tokens):
    abstract = abstract_clip(model(kind).config)
    shardings, split = shardings_for(abstract, mesh), batch_sharding(mesh)

    def gradients(model, images, tokens):
        return batch_gradients(
            model,
            images,
            tokens,
            key=KEY,
            precision=Precision(),
            mesh=mesh,
            loss_config=LossConfig(kind=kind, algorithm=algorithm, chunk=10),
            micro_batch=micro_batch,
        )

    with jax.set_mesh(mesh):
        step = jax.jit(gradients, in_shardings=(shardings, split, split), out_shardings=(shardings, None))
        return step.lower(abstract, images, tokens).compile()


def combinations():
    """All of them; the default tests take two."""
    quick = {
        ("softmax", "ring", "uneven", "2x2x2"),
        ("sigmoid", "sharded", "cached", "1x8x1"),
    }
    for one in itertools.product(("softmax", "sigmoid"), ALGORITHMS, MICRO, MESHES):
        yield pytest.param(*one, marks=() if one in quick else pytest.mark.slow, id="-".join(one))


@pytest.mark.parametrize(("kind", "algorithm", "micro", "mesh"), list(combinations()))
def test_loss_and_gradients_are_those_of_the_naive_function(kind, algorithm, micro, mesh):
    images, tokens = batch()
    run = compiled(kind, algorithm, MICRO[micro], mesh_of_run(mesh), images=images, tokens=tokens)
    shardings, _ = run.input_shardings
    placed = jax.device_put((model(kind), images, tokens), shardings)
    grads, out = run(*placed)
    expected_loss, expected = naive(kind)
    np.testing.assert_allclose(out.loss, expected_loss, rtol=1e-6)
    found = leaves_by_path(grads)
    assert found.keys() == expected.keys()
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    for path, leaf in expected.items():
        # Key biases have no gradient in exact arithmetic: theirs is the rounding of the others.
        scale = largest if path.endswith("attn/k/bias") else np.abs(leaf).max()
        np.testing.assert_allclose(found[path], leaf, rtol=0, atol=TOLERANCE * scale, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [1, 5, 47, 48])
def test_any_micro_batch_of_one_device_gives_the_same(micro_batch):
    images, tokens = batch()
    run = compiled("softmax", "global", micro_batch, mesh_of_run("1"), images=images, tokens=tokens)
    grads, out = run(model("softmax"), images, tokens)
    loss, expected = naive("softmax")
    np.testing.assert_allclose(out.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(
        grads.image.patch.weight,
        expected["image/patch/weight"],
        rtol=0,
        atol=1e-5 * np.abs(expected["image/patch/weight"]).max(),
    )


@pytest.mark.slow
def test_temporaries_of_micro_batches_grow_with_the_batch_by_its_embeddings_only():
    def temporary(rows, micro_batch):
        images = jax.ShapeDtypeStruct((rows, *tiny_runs.SIZE, 3), np.uint8)
        tokens = jax.ShapeDtypeStruct((rows, tiny_runs.LENGTH), np.int32)
        needed = memory_of(
            compiled("softmax", "chunked", micro_batch, mesh_of_run("8x1x1"), images=images, tokens=tokens)
        )
        assert needed is not None
        return needed.temporary

    few, many = temporary(128, 64), temporary(2048, 64)
    embed = model("softmax").config.image.output
    # Rows of a device: pixels as integers, tokens, two keys; and 16 arrays of the size of its embeddings.
    row = int(np.prod(tiny_runs.SIZE)) * 3 + 4 * tiny_runs.LENGTH + 2 * 8 + 16 * 4 * embed
    assert many - few < (2048 - 128) // 8 * row
    assert temporary(2048, None) - few > 4 * (many - few)


@pytest.mark.slow
def test_activations_do_not_grow_with_replicas():
    """Twice the devices for twice the batch need no more memory per device."""

    def temporary(rows, devices):
        mesh = make_mesh(MeshConfig(), devices=jax.devices()[:devices])
        images = jax.ShapeDtypeStruct((rows, *tiny_runs.SIZE, 3), np.uint8)
        tokens = jax.ShapeDtypeStruct((rows, tiny_runs.LENGTH), np.int32)
        needed = memory_of(compiled("softmax", "ring", None, mesh, images=images, tokens=tokens))
        assert needed is not None
        return needed.temporary

    assert temporary(512, 8) < 1.1 * temporary(128, 2)


@pytest.mark.slow
def test_parameters_shrink_with_fsdp_and_tensor():
    def arguments(name):
        images = jax.ShapeDtypeStruct((16, *tiny_runs.SIZE, 3), np.uint8)
        tokens = jax.ShapeDtypeStruct((16, tiny_runs.LENGTH), np.int32)
        needed = memory_of(compiled("softmax", "sharded", None, mesh_of_run(name), images=images, tokens=tokens))
        assert needed is not None
        return needed.arguments

    assert arguments("1x8x1") < 0.4 * arguments("8x1x1")
    assert arguments("1x1x4") < arguments("2x2x2") + arguments("1")
    assert arguments("2x2x2") < 0.6 * arguments("8x1x1")


def test_micro_batches_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="micro_batch is 17; it must be from 1 to batch_size 16"):
        tiny_runs.run_config(micro_batch=17)
    with pytest.raises(ShardingError, match=r"micro_batch 12 .* 8 devices .* multiple of 8"):
        compiled("softmax", "global", 12, mesh_of_run("8x1x1"), images=batch()[0], tokens=batch()[1])
