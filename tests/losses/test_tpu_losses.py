"""The losses compiled by the TPU's compiler, which runs on a CPU; needs the extra ``plan`` (libtpu)."""

import functools
import os
import re
import subprocess
import sys

import pytest
from support.paths import ROOT

pytestmark = pytest.mark.slow

# With 64 rows per device and a width of 24 on a v4, a reduce-scatter became an all-reduce of the complete array.
BATCH_SIZE, EMBED, PARTS = 1024, 128, 4

PROGRAM = """
import sys
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from clipa_eqx.losses.config import LossConfig
from clipa_eqx.losses.contrastive import contrastive_loss
from clipa_eqx.sharding import BATCH, MeshConfig, make_mesh

kind, algorithm, batch, embed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
devices = topologies.get_topology_desc(topology_name="v5e:2x2", platform="tpu").devices
mesh = make_mesh(MeshConfig(data=2, fsdp=2), devices=devices)
split, whole = NamedSharding(mesh, BATCH), NamedSharding(mesh, PartitionSpec())
rows = jax.ShapeDtypeStruct((batch, embed), jnp.float32, sharding=split)
scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
config = LossConfig(kind=kind, algorithm=algorithm, chunk=batch // 8)
scalars = {"log_temperature": scalar} | ({"bias": scalar} if kind == "sigmoid" else {})

def total(image, text, scalars):
    return contrastive_loss(image, text, **scalars, config=config, mesh=mesh).loss

with jax.set_mesh(mesh):
    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)), out_shardings=(None, (split, split, None)))
    sys.stdout.write(step.lower(rows, rows, scalars).compile().as_text())
"""


@functools.cache
def tpu_text(kind, algorithm):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", PROGRAM, kind, algorithm, str(BATCH_SIZE), str(EMBED)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def results(text, operation):
    """Result types of all operations of a kind, asynchronous ones included."""
    return re.findall(rf" = (.*?) {operation}(?:-start)?\(", text)


def is_of_embeddings(result):
    return re.search(rf"\[(?:\d+,)*{EMBED}\]", result) is not None


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("algorithm", ["sharded", "chunked", "ring"])
def test_a_tpu_reduces_gradients_of_embeddings_where_they_belong_and_multiplies_in_float32(kind, algorithm):
    text = tpu_text(kind, algorithm)
    # No complete gradient of the embeddings is reduced on all devices.
    assert [one for one in results(text, "all-reduce") if is_of_embeddings(one)] == []
    gathered = [one for one in results(text, "all-gather") if is_of_embeddings(one)]
    scattered = [one for one in results(text, "reduce-scatter") if is_of_embeddings(one)]
    if algorithm == "ring":
        assert results(text, "collective-permute")
        assert results(text, "all-gather") == results(text, "reduce-scatter") == []
    else:
        assert gathered
        assert scattered
        assert all(f"f32[{BATCH_SIZE // PARTS},{EMBED}]" in one for one in scattered)
    assert "bf16[" not in text
    products = [line for line in text.splitlines() if re.search(r" (?:convolution|dot)\(", line)]
    assert len(products) >= 3
    assert [line for line in products if "operand_precision={highest,highest}" not in line] == []
