#!/usr/bin/env bash
# jax 0.10.2: a policy of jax.checkpoint that saves matrix products saves none that has a derivative of its own.
#
# dots_saveable and dots_with_no_batch_dims_saveable look at the operations of the checkpointed function. A product in a
# function with jax.custom_jvp is inside of a custom_jvp_call there, so the policy does not see it: nothing is saved, and
# the backward pass computes the product again, as with nothing_saveable. There is no warning. What helps: give the
# result a name (jax.ad_checkpoint.checkpoint_name) and add save_only_these_names to the policy.
#
# Needs Python 3.11 or later: PYTHON=/its/path. Installs into a temporary folder from the package registry that pip is set
# up with. Exit 0: behavior as described. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet jax==0.10.2 jaxlib==0.10.2
cat >"$folder/count.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

policies = jax.checkpoint_policies


@jax.custom_jvp
def product(x, w):
    return x @ w


@product.defjvp
def _(primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    return product(x, w), dx @ w + x @ dw


def products(function, policy):
    """Matrix products of a gradient."""
    layer = jax.checkpoint(lambda x, w: jnp.sin(function(x, w)), policy=policy)
    gradient = jax.grad(lambda w: jnp.sum(layer(jnp.ones((4, 4)), w)))
    return str(jax.make_jaxpr(gradient)(jnp.ones((4, 4)))).count("= dot_general")


named = policies.save_from_both_policies(policies.dots_saveable, policies.save_only_these_names("product"))
found = {
    "x @ w, dots_saveable": products(lambda x, w: x @ w, policies.dots_saveable),
    "x @ w, nothing_saveable": products(lambda x, w: x @ w, policies.nothing_saveable),
    "custom_jvp, dots_saveable": products(product, policies.dots_saveable),
    "custom_jvp, nothing_saveable": products(product, policies.nothing_saveable),
    "custom_jvp with a name, and a policy for it": products(
        lambda x, w: checkpoint_name(product(x, w), "product"), named
    ),
}
for what, count in found.items():
    print(f"{count} products: {what}")
saved, again, missed, nothing, with_name = found.values()
sys.exit(0 if saved < again and missed == nothing and with_name < missed else 1)
PYTHON
"$folder/venv/bin/python" "$folder/count.py"
