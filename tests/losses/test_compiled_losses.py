"""Compiled losses: which buffers and which transfers between devices they have, forward and backward."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from support.meshes import mesh_of

from clipa_eqx.losses.config import LossConfig
from clipa_eqx.losses.contrastive import contrastive_loss
from clipa_eqx.sharding import BATCH

BATCH_SIZE, EMBED, CHUNK, PARTS = 1024, 8, 96, 8
COMPILED = ["softmax", pytest.param("sigmoid", marks=pytest.mark.slow)]


def loss_and_gradients(config, mesh):
    def total(image, text, scalars):
        out = contrastive_loss(image, text, **scalars, config=config, mesh=mesh)
        return out.loss

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))


def arguments(kind, mesh):
    sharding = None if mesh is None else NamedSharding(mesh, BATCH)
    rows = jax.ShapeDtypeStruct((BATCH_SIZE, EMBED), jnp.float32, sharding=sharding)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    names = ("log_temperature", "bias") if kind == "sigmoid" else ("log_temperature",)
    return rows, rows, dict.fromkeys(names, scalar)


@functools.cache
def compiled(kind, algorithm, split):
    """The program for eight devices or, if ``split`` is False, for one."""
    mesh = mesh_of(data=4, fsdp=2, tensor=1) if split else None
    config = LossConfig(kind=kind, algorithm=algorithm, chunk=CHUNK)
    return loss_and_gradients(config, mesh).lower(*arguments(kind, mesh)).compile()


def largest_buffer(text):
    """Elements of the largest array of a compiled program."""
    shapes = re.findall(r"(?:f32|pred|s32)\[([\d,]+)\]", text)
    sizes = [functools.reduce(int.__mul__, map(int, shape.split(","))) for shape in shapes]
    return max(sizes)


@pytest.mark.parametrize("kind", COMPILED)
@pytest.mark.parametrize(
    ("algorithm", "split", "largest"),
    [
        ("chunked", False, BATCH_SIZE * CHUNK),
        ("chunked", True, BATCH_SIZE // PARTS * CHUNK),
        ("ring", True, (BATCH_SIZE // PARTS) ** 2),
    ],
)
def test_no_buffer_is_larger_than_a_block_of_logits(kind, algorithm, split, largest):
    program = compiled(kind, algorithm, split)
    assert largest_buffer(program.as_text()) <= largest
    complete = BATCH_SIZE * BATCH_SIZE // (PARTS if split else 1)
    assert largest < complete
    # A few blocks may be in memory at once, for example logits and their exponentials.
    temporary = program.memory_analysis().temp_size_in_bytes
    assert temporary < 4 * (8 * largest + 8 * BATCH_SIZE * EMBED)
    other = compiled(kind, "global", split)
    assert temporary < other.memory_analysis().temp_size_in_bytes / 1.5
    assert largest_buffer(other.as_text()) >= complete, "the test would see a full matrix"


@pytest.mark.parametrize("kind", COMPILED)
def test_the_ring_gathers_nothing_and_reduces_scalars_only(kind):
    text = compiled(kind, "ring", True).as_text()
    assert "collective-permute" in text
    assert not re.search(r"all-gather|all-to-all|reduce-scatter", text)
    assert all(max(map(int, re.findall(r"\d+", shape)), default=0) <= PARTS for shape in all_reduced(text))
    assert re.search("all-gather", compiled(kind, "sharded", True).as_text()), "the test would see a gather"


def all_reduced(text):
    """Shapes of the results of all-reduces."""
    return re.findall(r"= \(?f32\[([\d,]*)\]\S* all-reduce", text)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("algorithm", ["sharded", "chunked"])
def test_gradients_of_gathered_embeddings_are_scattered_where_they_are_summed(kind, algorithm):
    mesh = mesh_of(data=4, fsdp=2, tensor=1)
    config = LossConfig(kind=kind, algorithm=algorithm, chunk=CHUNK)
    text = str(loss_and_gradients(config, mesh).trace(*arguments(kind, mesh)).jaxpr)
    assert len(re.findall("reduce_scatter", text)) >= (2 if (kind, algorithm) == ("softmax", "sharded") else 1)
    assert not re.search(rf"f32\[{BATCH_SIZE},{EMBED}\]\S* = psum", text)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("algorithm", ["global", "sharded", "chunked", "ring"])
def test_all_products_are_in_float32(kind, algorithm):
    mesh = mesh_of(data=4, fsdp=2, tensor=1)
    config = LossConfig(kind=kind, algorithm=algorithm, chunk=CHUNK)
    text = str(loss_and_gradients(config, mesh).trace(*arguments(kind, mesh)).jaxpr)
    products = re.findall(r"dot_general\[.*?\]\n", text, flags=re.DOTALL)
    assert products
    assert all("HIGHEST" in product for product in products)
    assert "bf16" not in text
