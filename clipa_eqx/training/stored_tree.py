"""Trees as checkpoints store them: nested dictionaries by leaf path, compared leaf by leaf with what is expected."""

from collections.abc import Mapping
from typing import Any

import jax

from clipa_eqx.errors import CheckpointError, listed
from clipa_eqx.saved.leaf_file import Leaf
from clipa_eqx.trees import from_leaves, leaves_by_path


def nested(tree: Any) -> dict[str, Any]:
    """Nested dictionaries of the leaves, one level per part of a path."""
    out: dict[str, Any] = {}
    for path, leaf in leaves_by_path(tree).items():
        node = out
        *parents, name = path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return out


def unnested(like: Any, stored: Mapping[str, Any]) -> Any:
    """A tree shaped like ``like`` with the leaves of nested dictionaries. Raises KeyError if one is missing."""
    return from_leaves(like, leaves_by_path(stored))


def leaf_types(tree: Any) -> dict[str, Leaf]:
    """Shape and dtype of each leaf, by leaf path."""
    return {path: Leaf(tuple(leaf.shape), leaf.dtype) for path, leaf in leaves_by_path(tree).items()}


def with_shardings(tree: Any, shardings: Any) -> Any:
    """Abstract leaves that say where each is to be placed."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def check_same_leaves(stored: Mapping[str, Leaf], abstract: Any, *, where: str) -> None:
    """Raise CheckpointError with every leaf that only one side has, or that has another shape or dtype."""
    expected = leaf_types(abstract)
    problems = [f"missing in the checkpoint: {path}" for path in expected if path not in stored]
    problems += [f"not in this model: {path}" for path in stored if path not in expected]
    problems += [
        f"{path}: {_show(stored[path])} in the checkpoint, {_show(expected[path])} expected"
        for path in expected
        if path in stored and stored[path] != expected[path]
    ]
    if problems:
        raise CheckpointError(
            f"{where} is of another architecture or optimizer; use the config it was trained with, or start a new run "
            f"from it with --init-from (and --init.surgery none, if its surgery is done already), {listed(problems)}"
        )


def _show(leaf: Leaf) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
