#!/usr/bin/env bash
# jax 0.10.2 on CPUs: the gradient of unrolled residual blocks repeats elementwise work, quadratically in the number of
# blocks.
#
# The gradient of the residual stream is a sum over all later blocks. The gradient of each weight needs it transposed, and
# XLA's fusion for CPUs computes the sum again in each of these copies, from the terms of every later block. The number of
# elementwise operations on the stream was 47, 159 and 575 for 4, 8 and 16 blocks. An optimization_barrier between the
# blocks changes nothing: it is removed before fusion. A scan over the blocks ends the sum at each block (6 operations
# for any number of blocks), and so does a conditional (lax.cond) on the gradient of the stream.
#
# Needs Python 3.11 or later: PYTHON=/its/path. Installs into a temporary folder from the package registry that pip is set
# up with. Exit 0: behavior as described. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet jax==0.10.2 jaxlib==0.10.2
cat >"$folder/count.py" <<'PYTHON'
import re
import sys

import jax
import jax.numpy as jnp


def block(x, weights):
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    return x + jax.nn.relu(centered @ weights[0].T) @ weights[1].T


def loss(weights, x, how):
    if how == "scan":
        x, _ = jax.lax.scan(lambda x, one: (block(x, one), None), x, weights)
    else:
        for one in weights:
            x = block(jax.lax.optimization_barrier(x) if how == "unrolled, barriers" else x, one)
    return jnp.sum(x * x)


def operations(depth, how):
    """Additions, subtractions and multiplications of arrays of the size of the stream, in the compiled gradient."""
    weights = jax.ShapeDtypeStruct((depth, 2, 256, 256), jnp.float32)
    x = jax.ShapeDtypeStruct((64, 32, 256), jnp.float32)
    text = jax.jit(jax.grad(lambda weights, x: loss(weights, x, how))).lower(weights, x).compile().as_text()
    return len(re.findall(r"= f32\[64,32,256\]\S* (?:add|subtract|multiply)\(", text))


found = {how: [operations(depth, how) for depth in (4, 8, 16)] for how in ("unrolled", "unrolled, barriers", "scan")}
for how, counts in found.items():
    print(f"{how}: {counts} elementwise operations on the stream for 4, 8 and 16 blocks")
few, more, most = found["unrolled"]
is_quadratic = most - more > 3 * (more - few)
sys.exit(0 if is_quadratic and found["unrolled, barriers"] == found["unrolled"] and len(set(found["scan"])) == 1 else 1)
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/count.py"
