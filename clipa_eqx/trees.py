"""One path string per leaf of a pytree, and ordered rules over those paths.

Weight decay, freezing, learning-rate factors, sharding, adapters, conversion and reports name leaves by path, such as
``image/blocks/attn/q/weight``. The layers of a tower are stacked, so this leaf holds all layers along its first axis.
Rules may also name one layer of it: ``image/blocks/{i}/attn/q/weight``, layers counted from 0.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax

from clipa_eqx.errors import ConfigError

T = TypeVar("T")

_STACKED = re.compile(r"((?:.*/)?blocks)/((?!\d+(?:/|$)).+)")


def leaf_paths(tree: Any) -> list[str]:
    """The path of each leaf in the order of ``jax.tree.leaves``; ``None`` is not a leaf.

    Examples:
        >>> leaf_paths({"image": {"cls": 1, "patch": {"weight": 2}}})
        ['image/cls', 'image/patch/weight']
    """
    return [_path(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """All leaves under their paths, in the order of ``jax.tree.leaves``.

    Examples:
        >>> leaves_by_path({"image": {"cls": 1, "patch": {"weight": 2}}})
        {'image/cls': 1, 'image/patch/weight': 2}
    """
    return {_path(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def from_leaves(skeleton: T, leaves: Mapping[str, Any]) -> T:
    """A tree shaped like ``skeleton`` with the leaves of these paths; other entries of ``leaves`` are ignored.

    Examples:
        >>> from_leaves({"image": {"cls": 1}}, {"image/cls": 5})
        {'image': {'cls': 5}}

    Raises:
        KeyError: ``leaves`` lacks a path of the skeleton.
    """
    return jax.tree.unflatten(jax.tree.structure(skeleton), [leaves[path] for path in leaf_paths(skeleton)])


def map_with_path(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """A tree of ``fn(path, leaf, *leaves_of_rest)``, shaped like ``tree``."""
    return jax.tree_util.tree_map_with_path(lambda keys, *leaves: fn(_path(keys), *leaves), tree, *rest)


def count_params(tree: Any) -> int:
    """Number of values in all leaves that have a shape; abstract leaves count too."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))


def stacked_depth(path: str, leaf: Any) -> int | None:
    """Number of layers that a leaf stacks along its first axis; ``None`` for a leaf outside ``blocks/``."""
    shape: tuple[int, ...] = getattr(leaf, "shape", ())
    return shape[0] if shape and _STACKED.fullmatch(path) else None


def layer_path(path: str, layer: int) -> str:
    """The path of one layer of a stacked leaf.

    Examples:
        >>> layer_path("image/blocks/attn/q/weight", 3)
        'image/blocks/3/attn/q/weight'
    """
    found = _STACKED.fullmatch(path)
    if found is None:
        raise ConfigError(f"{path!r} is not the path of a stacked leaf; only leaves under blocks/ have layers")
    return f"{found[1]}/{layer}/{found[2]}"


_REFUSE: Any = object()


def match_by_path(
    rules: Sequence[tuple[str, T]],
    tree: Any,
    *,
    what: str,
    unused: Literal["error", "allow"] = "error",
    otherwise: T = _REFUSE,
) -> dict[str, T | tuple[T, ...]]:
    """The value that an ordered list of ``(pattern, value)`` gives to each leaf, by path.

    A pattern is a regular expression that must match the complete path. The first rule that matches wins. Each layer of
    a stacked leaf is decided separately, by the first rule that matches the leaf's path or that layer's path. If the
    values of the layers differ, the result is a tuple over depth. Leaves may be abstract (``jax.ShapeDtypeStruct``).

    Examples:
        >>> match_by_path([(".*/weight", 0.1), (".*", 0.0)], {"head": {"weight": 1, "bias": 2}}, what="decay")
        {'head/bias': 0.0, 'head/weight': 0.1}

    Args:
        what: the name of the list for messages, for example ``"optim.decay"``.
        unused: ``"allow"`` is for tables that are part of the library and cover every model; each rule that a user
            writes must decide a leaf.
        otherwise: the value of leaves and layers that no rule matches; without it they are an error.

    Raises:
        ConfigError: a pattern that is not a regular expression; leaves that no rule matches; rules that decide no leaf.
    """
    patterns = [_compile(pattern, what=what) for pattern, _ in rules]
    decided: dict[str, T | tuple[T, ...]] = {}
    deciding: set[int] = set()
    uncovered: list[str] = []
    for path, leaf in leaves_by_path(tree).items():
        depth = stacked_depth(path, leaf)
        names = [(path, layer_path(path, layer)) for layer in range(depth)] if depth else [(path,)]
        chosen = [_first(patterns, alternatives) for alternatives in names]
        found = [index for index in chosen if index is not None]
        deciding.update(found)
        if len(found) < len(chosen) and otherwise is _REFUSE:
            uncovered += [path] if not found else [n[-1] for n, c in zip(names, chosen, strict=True) if c is None]
            continue
        values = [otherwise if index is None else rules[index][1] for index in chosen]
        alike = all(value == values[0] for value in values[1:])
        decided[path] = values[0] if alike else tuple(values)
    if uncovered:
        raise ConfigError(
            f"{what}: no rule matches {', '.join(map(repr, uncovered))}; add a rule, for example a last one for '.*'"
        )
    useless = [repr(rules[index][0]) for index in range(len(rules)) if index not in deciding]
    if useless and unused == "error":
        raise ConfigError(
            f"{what}: {', '.join(useless)} decides no leaf: it matches no path, or earlier rules take all of its paths;"
            " correct the pattern, move it up or remove it"
        )
    return decided


def match_any(patterns: Sequence[str], tree: Any, *, what: str) -> dict[str, bool | tuple[bool, ...]]:
    """Whether one of some patterns matches each leaf, by path, or each layer of it; patterns may match the same leaf.

    >>> match_any([".*/weight", "head/.*"], {"head": {"weight": 1, "bias": 2}, "x": 3}, what="trainable")
    {'head/bias': True, 'head/weight': True, 'x': False}

    Args:
        what: the name of the list for messages, for example ``"trainable"``.

    Raises:
        ConfigError: a pattern that is not a regular expression or matches no leaf.
    """
    for one in patterns:
        found = match_by_path([(one, True)], tree, what=what, unused="allow", otherwise=False)
        if all(value is False for value in found.values()):
            raise ConfigError(f"{what}: {one!r} matches no leaf; correct the pattern or remove it")
    return match_by_path([(one, True) for one in patterns], tree, what=what, unused="allow", otherwise=False)


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _compile(pattern: str, *, what: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{what}: {pattern!r} is not a regular expression ({error})") from error


def _first(patterns: Sequence[re.Pattern[str]], names: Sequence[str]) -> int | None:
    return next((i for i, pattern in enumerate(patterns) if any(map(pattern.fullmatch, names))), None)
