"""Leaves of a side of a comparison: any file's tensors in float64, under our paths, layer by layer."""

import re
from collections.abc import Callable, Mapping

import numpy as np

from clipa_eqx.errors import ConversionError
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.saved.leaf_file import LeafReader
from clipa_eqx.saved.leaf_shapes import leaf_shapes
from conversion.compare.replay import Float64Array
from conversion.open_clip.names import image_table, text_table
from conversion.weights.leaf_rule import LeafRule
from conversion.weights.rules import RuleTable, raise_problems
from conversion.weights.tensors import TensorFile

_LAYER = re.compile(r"(.*blocks)/(\d+)/(.*)")

Read = Callable[[str], Float64Array | None]
"""A leaf by its path, blocks by their layer's path (``image/blocks/3/norm1/weight``); None if the file lacks it."""


def model_folder_leaves(leaves: LeafReader, config: CLIPConfig) -> Read:
    """Leaves of a model folder, and the position tables that it does not store."""

    def read(name: str) -> Float64Array | None:
        path, layer = _path_and_layer(name)
        return leaves.read(path, layer).astype(np.float64) if path in leaves.leaves else None

    return with_tables(read, config)


def foreign_leaves(file: TensorFile, table: RuleTable, *, bias_end: str) -> Read:
    """Leaves of a foreign file.

    Args:
        file: the open file.
        table: the rule table of its format for the model.
        bias_end: how the names of biases end; a missing bias is None.

    Raises:
        ConversionError: lists all that does not fit, except for missing biases.
    """
    problems = [
        problem
        for problem in table.check(file.tensors)
        if not (problem.startswith("missing: ") and problem.split()[1].endswith(bias_end))
    ]
    raise_problems(problems, where=str(file.path))
    shapes = leaf_shapes(table.config)
    where: dict[tuple[str, int | None], tuple[str, LeafRule]] = {
        (rule.path, one.layer): (name, rule) for name, one in table.placed.items() for rule in one.rules
    }

    def read(name: str) -> Float64Array | None:
        key = _path_and_layer(name)
        if key not in where or where[key][0] not in file.tensors:
            return None
        tensor, rule = where[key]
        shape = shapes[rule.path] if key[1] is None else shapes[rule.path][1:]
        return rule.to_ours(file.read(tensor), shape).astype(np.float64)

    return read


def with_tables(read: Read, config: CLIPConfig) -> Read:
    """The same leaves and the position tables that are computed, which are leaves in a comparison."""
    image = image_table(config.image.grid, config.image.blocks.width) if config.image.position == "sincos2d" else None
    text = text_table(config.text.length, config.text.blocks.width) if config.text.position == "sincos1d" else None
    tables: Mapping[str, np.ndarray | None] = {"image/position": image, "text/position": text}

    def read_all(name: str) -> Float64Array | None:
        table = tables.get(name)
        return read(name) if table is None else table.astype(np.float64)

    return read_all


def log_temperature(read: Read) -> float:
    """The stored logarithm. Raises ``ConversionError`` if there is none."""
    value = read("log_temperature")
    if value is None:
        raise ConversionError("the file has no temperature")
    return float(value)


def _path_and_layer(name: str) -> tuple[str, int | None]:
    found = _LAYER.fullmatch(name)
    return (f"{found[1]}/{found[3]}", int(found[2])) if found else (name, None)
