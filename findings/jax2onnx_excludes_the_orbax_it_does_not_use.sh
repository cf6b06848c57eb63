#!/usr/bin/env bash
# jax2onnx 0.17.1 requires orbax-checkpoint<0.11.37, so it cannot be installed with orbax-checkpoint 0.12; yet it converts
# functions with that version, because a conversion imports nothing of Orbax.
#
# For an environment with orbax-checkpoint 0.12.8, pip chooses jax2onnx 0.13.0, the newest release without the requirement.
# That one uses jax.interpreters.batching.not_mapped, which JAX 0.10 no longer has: a call of jnp.maximum under jax.vmap in
# jax.lax.scan ends with an AttributeError.
# What helps: pip install --no-deps jax2onnx==0.17.1, next to onnx, onnx-ir, onnxruntime and flax.
#
# Needs Python 3.11 or later: PYTHON=/its/path. Installs into a temporary folder from the package registry that pip is set
# up with (about 1 GB). Exit 0: behavior as described. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet jax==0.10.2 jaxlib==0.10.2 orbax-checkpoint==0.12.8 onnxruntime==1.32.0
cat >"$folder/convert.py" <<'PYTHON'
import importlib.metadata
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
from jax import export


def encode(x):
    blocks = jnp.arange(6.0).reshape(2, 3)
    return jax.vmap(lambda row: jax.lax.scan(lambda y, b: (jnp.maximum(y * 0.5, b), None), row, blocks)[0])(x)


versions = {name: importlib.metadata.version(name) for name in ("jax2onnx", "orbax-checkpoint", "jax")}
try:
    import jax2onnx

    (batch,) = export.symbolic_shape("batch")
    graph = jax2onnx.to_onnx(encode, [jax.ShapeDtypeStruct((batch, 3), jnp.float32)])
except AttributeError as error:
    print(versions, f"AttributeError: {error}")
    sys.exit(3)
rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
session = onnxruntime.InferenceSession(graph.SerializeToString())
(found,) = session.run(None, {session.get_inputs()[0].name: rows})
imported = sorted(name for name in sys.modules if name.startswith("orbax"))
print(versions, "largest difference", np.abs(found - encode(rows)).max(), "imported of Orbax:", imported)
sys.exit(0 if np.allclose(found, encode(rows), atol=1e-6) and not imported else 1)
PYTHON

if "$python" -m pip install --quiet jax2onnx==0.17.1 orbax-checkpoint==0.12.8 >"$folder/log" 2>&1; then
    echo "changed: pip installs jax2onnx 0.17.1 with orbax-checkpoint 0.12.8"
    exit 1
fi
grep -m 1 "orbax-checkpoint" "$folder/log"
"$python" -m pip install --quiet jax2onnx jax==0.10.2 orbax-checkpoint==0.12.8
code=0
"$python" "$folder/convert.py" 2>/dev/null || code=$?
[ "$code" = 3 ] || { echo "changed: the version that pip chooses works"; exit 1; }
"$python" -m pip install --quiet --no-deps jax2onnx==0.17.1
"$python" "$folder/convert.py" 2>/dev/null
echo "as described"
